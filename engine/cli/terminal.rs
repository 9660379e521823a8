//! What people see: output, errors, and a line of progress.

use std::io::{IsTerminal, Write};

/// Prints to standard output. A reader that has gone away is no error.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _reader_may_be_gone = writeln!(out, "{text}");
}

/// Prints to standard error.
pub fn complain(text: &str) {
    let mut out = std::io::stderr().lock();
    let _reader_may_be_gone = writeln!(out, "{}", text.trim_end());
}

/// Overwrites the line of progress on standard error.
pub fn progress(text: &str) {
    let mut out = std::io::stderr().lock();
    let _reader_may_be_gone = write!(out, "\r\x1b[2K{text}").and_then(|()| out.flush());
}

/// Tells whether errors are read on a terminal that shows colours.
pub fn errors_have_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Tells whether output is read on a terminal that shows colours.
pub fn output_has_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Tells whether someone watches standard error.
pub fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes a count with thin groups of three digits: `1 234 567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Writes how many there are of something: `1 table`, `4 tables`.
pub fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Writes a size: `12.3 MiB`.
#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sizes_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(336_776), "336 776");
        assert_eq!(count(1_000_000), "1 000 000");
        assert_eq!((counted(1, "epoch"), counted(0, "epoch")), ("1 epoch".to_owned(), "0 epochs".to_owned()));
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 * 1024 * 1024 * 1024), "5.0 GiB");
    }
}
