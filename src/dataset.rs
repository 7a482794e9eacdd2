//! Rows of a data set: JSON lines with a question, pictures and an answer.
//!
//! A row is an object with `question` (or `text`), and where it has them `id`, `image` or `images`, `choices` and `answer`. A
//! picture is a path, taken from the folder of the file, or a `data:` URI. By other fields rows can be grouped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use sphinx_runtime::Picture;

use crate::failure::{Failure, shown};

/// Longest line, in bytes: pictures may be in it.
const MAX_LINE_BYTES: u64 = 128 << 20;

/// One row.
#[derive(Debug, Default, Deserialize)]
pub struct Row {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    images: Vec<String>,
    /// What is asked.
    #[serde(default)]
    pub question: Option<String>,
    /// A text that is no question.
    #[serde(default)]
    pub text: Option<String>,
    /// The answer, whatever it is.
    #[serde(default)]
    answer: Option<Value>,
    /// Answers to choose from.
    #[serde(default)]
    choices: Option<Vec<Value>>,
    /// Everything else in the row.
    #[serde(flatten)]
    other: Map<String, Value>,
    /// The line it stands on, from 1.
    #[serde(skip)]
    pub line: usize,
}

impl Row {
    /// The answer as text.
    pub fn answer(&self) -> Option<String> {
        self.answer.as_ref().and_then(plain)
    }

    /// What there is to choose from.
    pub fn choices(&self) -> Vec<String> {
        self.choices.iter().flatten().filter_map(plain).collect()
    }

    /// What stands in `field`, as text; the row's `id` and `split` among them.
    pub fn field(&self, field: &str) -> Option<String> {
        self.other.get(field).and_then(plain)
    }

    /// Where its pictures are, as the row says it.
    pub fn picture_names(&self) -> impl Iterator<Item = &String> {
        self.image.iter().filter(|i| !i.is_empty()).chain(&self.images)
    }
}

/// A value as text; nothing of `null`.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Reads rows one after the other.
pub struct Rows {
    path: PathBuf,
    lines: BufReader<File>,
    line: usize,
}

impl Rows {
    /// Opens the JSON lines file `path`.
    pub fn open(path: &Path) -> Result<Rows> {
        let io = |e| Failure::io(path, &e);
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(Rows { path: path.to_owned(), lines: BufReader::new(File::open(path).map_err(io)?), line: 0 })
    }

    /// The next row; empty lines are passed over. `None` at the end.
    pub fn next(&mut self) -> Result<Option<Row>> {
        loop {
            let mut bytes = Vec::new();
            let read = self.lines.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
            if read.map_err(|e| Failure::io(&self.path, &e))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if bytes.len() as u64 > MAX_LINE_BYTES {
                return Err(self.bad(self.line, format!("longer than {} MiB", MAX_LINE_BYTES >> 20)));
            }
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let row: Row = serde_json::from_slice(&bytes).map_err(|e| self.bad(self.line, format!("no row: {e}")))?;
            if row.question.is_none() && row.text.is_none() {
                return Err(self.bad(self.line, "neither question nor text".into()));
            }
            return Ok(Some(Row { line: self.line, ..row }));
        }
    }

    /// The row's pictures, in order.
    pub fn pictures(&self, row: &Row) -> Result<Vec<Picture>> {
        row.picture_names().map(|image| self.picture(row.line, image)).collect()
    }

    fn picture(&self, line: usize, image: &str) -> Result<Picture> {
        let Some(uri) = image.strip_prefix("data:") else {
            let path = self.path.parent().unwrap_or(Path::new("")).join(image);
            return Ok(Picture::open(&path)?);
        };
        let data = uri.split_once(',').filter(|(kind, _)| kind.ends_with(";base64")).map(|(_, data)| data);
        let data = data.ok_or_else(|| self.bad(line, "a data URI that is not in base64".into()))?;
        let bytes = BASE64_STANDARD.decode(data).map_err(|e| self.bad(line, format!("a data URI that is no base64: {e}")))?;
        Ok(Picture::from_bytes(&bytes, &format!("{} line {line}", self.path.display()))?)
    }

    /// The error of a row that cannot be used.
    pub fn bad(&self, line: usize, what: String) -> anyhow::Error {
        Failure::invalid(format!("{} line {line}: {what} — a row is {{\"question\": …, \"image\": …, \"answer\": …}}", shown(&self.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> (tempfile::TempDir, Rows) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        (folder, Rows::open(&path).unwrap())
    }

    #[test]
    fn rows_have_questions_answers_and_pictures() {
        // A GIF of one pixel.
        let gif = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
        let text = format!(
            "{{\"id\": 1, \"question\": \"Who?\", \"answer\": \"me\", \"split\": \"test\"}}\n\n\
             {{\"question\": \"What?\", \"image\": \"data:image/gif;base64,{gif}\", \"answer\": 2, \"choices\": [2, \"two\"]}}\n{{\"text\": \"Plain.\"}}"
        );
        let (_folder, mut rows) = rows(text.as_bytes());
        let first = rows.next().unwrap().unwrap();
        assert_eq!((first.question.as_deref(), first.answer().as_deref(), first.line), (Some("Who?"), Some("me"), 1));
        assert!(rows.pictures(&first).unwrap().is_empty());
        let second = rows.next().unwrap().unwrap();
        assert_eq!((second.answer().as_deref(), second.line), (Some("2"), 3));
        assert_eq!((first.field("split").as_deref(), first.field("id").as_deref(), first.field("none")), (Some("test"), Some("1"), None));
        assert_eq!((first.choices(), second.choices()), (vec![], vec!["2".to_owned(), "two".to_owned()]));
        let pictures = rows.pictures(&second).unwrap();
        assert_eq!((pictures.len(), pictures[0].width()), (1, 1));
        assert_eq!(rows.next().unwrap().unwrap().text.as_deref(), Some("Plain."));
        assert!(rows.next().unwrap().is_none());
    }

    #[test]
    fn bad_rows_are_named_by_their_line() {
        for (text, word) in [
            (&b"{\"question\": \"a\"}\n{\"question\": 3}"[..], "line 2"),
            (b"[1]", "line 1"),
            (b"{\"answer\": \"a\"}", "neither question nor text"),
            (b"\xff\xfe", "line 1"),
        ] {
            let (_folder, mut rows) = rows(text);
            let error = loop {
                match rows.next() {
                    Ok(Some(_)) => (),
                    Ok(None) => panic!("{text:?} was read"),
                    Err(e) => break e.to_string(),
                }
            };
            assert!(error.contains(word), "{error}");
        }
        let (_folder, mut rows) = rows(b"{\"question\": \"a\", \"image\": \"missing.png\", \"images\": [\"data:image/png,xx\"]}");
        let row = rows.next().unwrap().unwrap();
        assert!(rows.pictures(&row).is_err());
    }
}
