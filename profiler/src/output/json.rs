//! JSON for people and programs: indented, but a list of numbers is one line, however long.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Writes a value, and a line end.
///
/// # Errors
///
/// When `writer` fails, or the value has no form in JSON.
pub(super) fn write(value: &impl Serialize, writer: &mut impl Write) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(&mut *writer, Lines::default()))?;
    writeln!(writer)
}

/// As [`PrettyFormatter`], but for lists of numbers.
#[derive(Default)]
struct Lines<'a> {
    pretty: PrettyFormatter<'a>,
    /// The element of a list that is about to be written, until it is known to be a number: whether it is the first.
    pending: Option<bool>,
    /// Whether the last element of a list was a number.
    was_number: bool,
}

impl Lines<'_> {
    /// Begins an element that is no number.
    fn begin_line<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.was_number = false;
        match self.pending.take() {
            Some(first) => self.pretty.begin_array_value(writer, first),
            None => Ok(()),
        }
    }

    /// Begins an element that is a number, or stands for a missing one.
    fn begin_number<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        let Some(first) = self.pending.take() else { return Ok(()) };
        self.was_number = true;
        if first { Ok(()) } else { writer.write_all(b",") }
    }
}

impl Formatter for Lines<'_> {
    fn write_null<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin_number(writer)?;
        writer.write_all(b"null")
    }

    fn write_bool<W: Write + ?Sized>(&mut self, writer: &mut W, value: bool) -> io::Result<()> {
        self.begin_line(writer)?;
        self.pretty.write_bool(writer, value)
    }

    fn write_u32<W: Write + ?Sized>(&mut self, writer: &mut W, value: u32) -> io::Result<()> {
        self.begin_number(writer)?;
        self.pretty.write_u32(writer, value)
    }

    fn write_u64<W: Write + ?Sized>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        self.begin_number(writer)?;
        self.pretty.write_u64(writer, value)
    }

    fn write_i32<W: Write + ?Sized>(&mut self, writer: &mut W, value: i32) -> io::Result<()> {
        self.begin_number(writer)?;
        self.pretty.write_i32(writer, value)
    }

    fn write_i64<W: Write + ?Sized>(&mut self, writer: &mut W, value: i64) -> io::Result<()> {
        self.begin_number(writer)?;
        self.pretty.write_i64(writer, value)
    }

    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        self.begin_number(writer)?;
        self.pretty.write_f64(writer, value)
    }

    fn begin_string<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin_line(writer)?;
        self.pretty.begin_string(writer)
    }

    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin_line(writer)?;
        self.pretty.begin_array(writer)
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        if std::mem::take(&mut self.was_number) {
            // As for an empty one, there is no line of its own for the end.
            let mut nothing = Vec::new();
            self.pretty.end_array(&mut nothing)?;
            return writer.write_all(b"]");
        }
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, _: &mut W, first: bool) -> io::Result<()> {
        self.pending = Some(first);
        Ok(())
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin_line(writer)?;
        self.pretty.begin_object(writer)
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.was_number = false;
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(value: &Value, expected: &str) {
        let mut bytes = Vec::new();
        write(value, &mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), format!("{expected}\n"));
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), *value);
    }

    #[test]
    fn numbers_share_a_line() {
        check(
            &json!({"a": [1, null, -3], "b": ["x", "y"]}),
            "{\n  \"a\": [1,null,-3],\n  \"b\": [\n    \"x\",\n    \"y\"\n  ]\n}",
        );
        check(&json!({"a": [], "b": {}, "c": 1}), "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": 1\n}");
        check(
            &json!([{"a": [1.5]}, {"a": [true]}]),
            "[\n  {\n    \"a\": [1.5]\n  },\n  {\n    \"a\": [\n      true\n    ]\n  }\n]",
        );
    }

    #[test]
    fn mixed_lists_are_still_json() {
        for value in
            [json!([1, "x", 2]), json!(["x", 1]), json!([[1, 2], [3], []]), json!([1, [2, {"a": 3}], null, {}])]
        {
            let mut bytes = Vec::new();
            write(&value, &mut bytes).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), value);
        }
    }
}
