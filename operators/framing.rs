//! Where one record ends and the next begins: what a source of byte streams
//! must know of a format, and nothing more.

/// How records stand one behind the other in a file or object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// JSON: a document a line, documents back to back, or one array; told apart by the content.
    Json,
    /// CSV: a record a line, where a quoted field may hold line breaks.
    Csv {
        /// Whether the first record names the columns.
        header: bool,
        /// What stands between two fields; a quote opens a quoted field only behind one.
        delimiter: u8,
        /// The quote character.
        quote: u8,
    },
    /// The whole content is one record.
    Whole,
    /// A Parquet file, read by row groups.
    Parquet,
    /// Records with their length before them, as a variable number of Protocol Buffers.
    Delimited,
    /// An Avro container file, read by blocks; offsets count its records.
    Avro,
}
