//! Describes a file that is not of the expected format, from its first bytes.

/// How files begin, and what they are.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`",
    ),
    (b"PK\x03\x04", "is a zip archive"),
    (b"\x1f\x8b", "is a gzip archive"),
    (b"BZh", "is a bzip2 archive"),
    (b"\xfd7zXZ\0", "is an xz archive"),
    (b"\x28\xb5\x2f\xfd", "is a Zstandard archive"),
    (b"PAR1", "is a Parquet file"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    (b"GGUF", "is a GGUF file"),
    (b"\x93NUMPY", "is a NumPy array"),
    (b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
    (b"\xff\xd8\xff", "is a JPEG picture"),
];

/// What a file is, as the end of a sentence with what to do; `None` where that is unknown. It is for messages about files
/// that are not what they should be.
#[must_use]
pub fn describe_format(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("is empty; download or copy it again".to_owned());
    }
    let mut beginnings = BEGINNINGS.iter();
    if let Some((_, description)) = beginnings.find(|(start, _)| bytes.starts_with(start)) {
        return Some((*description).to_owned());
    }
    // The part that a person would look at. A character may be cut at its end.
    let start = &bytes[..bytes.len().min(200)];
    let start = start.utf8_chunks().next().filter(|chunk| {
        chunk.invalid().is_empty() || chunk.valid().len() + chunk.invalid().len() == start.len()
    })?;
    let text = start.valid().trim_start_matches('\u{feff}').trim();
    let is_text = |c: char| !c.is_control() || c.is_whitespace();
    if text.is_empty() || !text.chars().all(is_text) {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<body"]
        .iter()
        .any(|tag| lower.starts_with(tag))
    {
        return Some(
            "is an HTML page, such as one that asks to log in; download the file itself".to_owned(),
        );
    }
    let line = text.lines().next().unwrap_or_default().chars().take(60);
    let line: String = line.map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(format!("is a text that begins with `{line}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_recognised_by_their_beginning() {
        for (bytes, expected) in [
            (&b""[..], "is empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
                "Git LFS pointer",
            ),
            (b"\n <!DOCTYPE html>\n<html>", "HTML page"),
            (b"\xef\xbb\xbf<HTML><body>", "HTML page"),
            (b"Entry not found", "begins with `Entry not found`"),
            (b"{\"error\": 1}\nmore", "begins with `{\"error\": 1}`"),
            (b"PK\x03\x04\0", "zip archive"),
        ] {
            let found = describe_format(bytes).unwrap();
            assert!(found.contains(expected), "{found}");
        }
        for bytes in [
            &b"\x10\0\0\0\0\0\0\0{}"[..],
            b"\xff\xfe",
            b"  \n",
            b"a\x1b[2J",
            b"a\xffb",
        ] {
            assert_eq!(describe_format(bytes), None, "{bytes:?}");
        }
        // Cut within a character.
        let text = "x".to_owned() + &"ä".repeat(200);
        assert!(describe_format(text.as_bytes()).is_some());
    }

    proptest! {
        #[test]
        fn descriptions_are_one_line(bytes in prop::collection::vec(any::<u8>(), 0..300), text: String) {
            for description in [describe_format(&bytes), describe_format(text.as_bytes())].into_iter().flatten() {
                prop_assert!(!description.chars().any(char::is_control));
            }
        }
    }
}
