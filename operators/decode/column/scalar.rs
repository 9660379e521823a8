//! Columns whose values have no parts: numbers, truth values, times, bytes.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, BooleanBufferBuilder, NullBufferBuilder, PrimitiveArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use super::{Form, Misfit, Texts};
use crate::decode::{base64, number, time};
use crate::error::Result;

/// Values that are parsed from one text each.
pub(in crate::decode) trait Scalar: Send {
    fn len(&self) -> usize;
    fn truncate(&mut self, len: usize);
    fn push_null(&mut self);
    fn push(&mut self, text: &[u8], form: Form) -> Result<(), Misfit>;
    fn finish(&mut self) -> Result<ArrayRef>;
}

/// Makes the column of a type; `None` if it is nested, text, or not supported.
pub(super) fn scalar(data_type: &DataType) -> Option<Box<dyn Scalar>> {
    fn primitive<T, P>(data_type: &DataType, parse: P) -> Option<Box<dyn Scalar>>
    where
        T: ArrowPrimitiveType,
        P: Fn(&[u8], Form) -> Result<T::Native, Misfit> + Send + 'static,
    {
        let (values, nulls) = (Vec::new(), NullBufferBuilder::new(0));
        Some(Box::new(Primitives::<T, P> { data_type: data_type.clone(), values, nulls, parse }))
    }
    match data_type {
        DataType::Boolean => {
            Some(Box::new(Truths { values: BooleanBufferBuilder::new(0), nulls: NullBufferBuilder::new(0) }))
        }
        DataType::Int8 => primitive::<Int8Type, _>(data_type, whole(number::integer)),
        DataType::Int16 => primitive::<Int16Type, _>(data_type, whole(number::integer)),
        DataType::Int32 => primitive::<Int32Type, _>(data_type, whole(number::integer)),
        DataType::Int64 => primitive::<Int64Type, _>(data_type, whole(number::integer)),
        DataType::UInt8 => primitive::<UInt8Type, _>(data_type, whole(number::integer)),
        DataType::UInt16 => primitive::<UInt16Type, _>(data_type, whole(number::integer)),
        DataType::UInt32 => primitive::<UInt32Type, _>(data_type, whole(number::integer)),
        DataType::UInt64 => primitive::<UInt64Type, _>(data_type, whole(number::integer)),
        DataType::Float32 => primitive::<Float32Type, _>(data_type, whole(number::float32)),
        DataType::Float64 => primitive::<Float64Type, _>(data_type, whole(number::float64)),
        &DataType::Decimal128(precision, scale) => {
            primitive::<Decimal128Type, _>(data_type, whole(move |text| number::decimal(text, precision, scale)))
        }
        DataType::Date32 => primitive::<Date32Type, _>(data_type, timely(time::date)),
        DataType::Time64(TimeUnit::Microsecond) => {
            primitive::<Time64MicrosecondType, _>(data_type, timely(time::time_us))
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => {
            primitive::<TimestampMicrosecondType, _>(data_type, timely(time::timestamp_us))
        }
        DataType::BinaryView => Some(Box::new(Binaries(Texts::new()))),
        _ => None,
    }
}

/// Reads a number from a number or a text.
fn whole<N>(parse: impl Fn(&[u8]) -> Result<N, Misfit>) -> impl Fn(&[u8], Form) -> Result<N, Misfit> {
    move |text, form| match form {
        Form::Text | Form::Number => parse(text),
        Form::Field => parse(text.trim_ascii()),
        Form::Truth => Err(Misfit::NotA),
    }
}

/// Reads a time from a text only.
fn timely<N>(parse: impl Fn(&[u8]) -> Option<N>) -> impl Fn(&[u8], Form) -> Result<N, Misfit> {
    move |text, form| match form {
        Form::Text => parse(text).ok_or(Misfit::NotA),
        Form::Field => parse(text.trim_ascii()).ok_or(Misfit::NotA),
        Form::Number => Err(Misfit::NumberForTime),
        Form::Truth => Err(Misfit::NotA),
    }
}

struct Primitives<T: ArrowPrimitiveType, P> {
    data_type: DataType,
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
    parse: P,
}

impl<T, P> Scalar for Primitives<T, P>
where
    T: ArrowPrimitiveType,
    P: Fn(&[u8], Form) -> Result<T::Native, Misfit> + Send,
{
    fn len(&self) -> usize {
        self.values.len()
    }

    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    fn push_null(&mut self) {
        self.values.push(T::Native::default());
        self.nulls.append_null();
    }

    fn push(&mut self, text: &[u8], form: Form) -> Result<(), Misfit> {
        self.values.push((self.parse)(text, form)?);
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let next = Vec::with_capacity(self.values.len());
        let values = std::mem::replace(&mut self.values, next);
        let array = PrimitiveArray::<T>::try_new(values.into(), self.nulls.finish())?;
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}

struct Truths {
    values: BooleanBufferBuilder,
    nulls: NullBufferBuilder,
}

impl Scalar for Truths {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    fn push_null(&mut self) {
        self.values.append(false);
        self.nulls.append_null();
    }

    fn push(&mut self, text: &[u8], form: Form) -> Result<(), Misfit> {
        let text = text.trim_ascii();
        let is = |word: &str| text.eq_ignore_ascii_case(word.as_bytes());
        let value = match form {
            Form::Number => return Err(Misfit::NotA),
            _ if is("true") || is("t") || is("1") => true,
            _ if is("false") || is("f") || is("0") => false,
            _ => return Err(Misfit::NotA),
        };
        self.values.append(value);
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(Arc::new(BooleanArray::new(self.values.finish(), self.nulls.finish())))
    }
}

/// Bytes, which JSON holds as base64; CSV puts them in as they are.
struct Binaries(Texts);

impl Scalar for Binaries {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    fn push_null(&mut self) {
        self.0.push_null();
    }

    fn push(&mut self, text: &[u8], form: Form) -> Result<(), Misfit> {
        match form {
            Form::Text => self.0.push_with(|bytes| base64::decode(text, bytes).ok_or(Misfit::NotA)),
            Form::Field => self.0.push(text),
            Form::Number | Form::Truth => Err(Misfit::NotA),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(Arc::new(self.0.finish_binary()?))
    }
}
