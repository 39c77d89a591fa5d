//! Labels from a table: CSV, TSV or JSON Lines, as spreadsheets and labelling tools write them. Lists of files.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use luthier_artifact::{Split, file_names};
use serde_json::Value;

use crate::{Error, Result};

/// A row of a table of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelledFile {
    /// The line of the table, from 1 on.
    pub(super) line: usize,
    /// The path as the manifest has it: below the folder of the images, or absolute.
    pub(super) file: String,
    pub(super) class: String,
    /// `None` if the table does not say it.
    pub(super) split: Option<Split>,
}

/// A line of a list of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedFile {
    /// The line of the list, from 1 on.
    pub(super) line: usize,
    /// The path as the manifest has it: below the folder of the images, or absolute.
    pub(super) file: String,
}

/// What a column holds, by its name in lower case: the names that people, Hugging Face, Label Studio and Vertex AI use.
const FILE_NAMES: [&str; 10] = [
    "file",
    "path",
    "image",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_path",
    "image_uri",
    "uri",
];
const CLASS_NAMES: [&str; 5] = ["label", "class", "choice", "category", "class_name"];
const SPLIT_NAMES: [&str; 4] = ["split", "set", "subset", "ml_use"];

/// What is wrong with text that is not UTF-8.
const NOT_UTF8: &str = "other bytes than UTF-8: save the table as UTF-8";

/// What a row says, before the file is looked for.
struct Row {
    line: usize,
    /// The bytes of the cell, with the blanks around them, which may be part of the name.
    file: Vec<u8>,
    class: String,
    split: String,
}

/// Reads a table. Files are looked for below `folder`; a file that is not found there keeps its name.
///
/// # Errors
/// [`Error::File`] if the table cannot be read, [`Error::Labels`] if it is no table of labels: it lacks a column, a split
/// is unknown, or a file has two labels.
pub(super) fn read(table: &Path, folder: &Path) -> Result<Vec<LabelledFile>> {
    let bytes = std::fs::read(table).map_err(Error::io(table))?;
    let wrong = |line: usize, problem: String| Error::Labels {
        path: table.to_owned(),
        line,
        problem,
    };
    let text = decoded(&bytes).map_err(|problem| wrong(1, problem))?;
    let is_json = text.trim_ascii_start().starts_with(b"{");
    let rows = if is_json { json_rows(&text) } else { csv_rows(&text) };
    let rows = rows.map_err(|(line, problem)| wrong(line, problem))?;
    let is_there = |name: &str| folder.join(file_names::path_of(name)).is_file();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut files: Vec<LabelledFile> = Vec::with_capacity(rows.len());
    let mut n_repeated = 0;
    for Row {
        line,
        file: cell,
        class,
        split,
    } in rows
    {
        let whole = file_names::name_of_bytes(&cell);
        let name = whole.trim();
        if name.is_empty() && class.is_empty() && split.is_empty() {
            continue; // an empty row at the end of a spreadsheet
        }
        if name.is_empty() {
            return Err(wrong(line, "no file".to_owned()));
        }
        let shown = file_names::shown(name);
        if class.is_empty() {
            return Err(wrong(line, format!("{shown} without a label")));
        }
        let split = split_of(&split).map_err(|problem| wrong(line, format!("{shown}: {problem}")))?;
        // Blanks around a name are taken for the table's, unless there is a file with them.
        let file = match name != whole && is_there(&whole) {
            true => found(&whole, folder),
            false => found(name, folder),
        };
        // JSON is UTF-8 whatever bytes it says that a name has.
        if !is_json && std::str::from_utf8(&cell).is_err() && !is_there(&file) {
            return Err(wrong(line, NOT_UTF8.to_owned()));
        }
        let Some(&place) = seen.get(&file) else {
            seen.insert(file.clone(), files.len());
            files.push(LabelledFile {
                line,
                file,
                class,
                split,
            });
            continue;
        };
        let before = &mut files[place];
        let file = file_names::shown(&file);
        if before.class != class {
            let (other, before) = (&before.class, before.line);
            return Err(wrong(line, format!("{file} is {class}, and in line {before} {other}")));
        }
        match (before.split, split) {
            (Some(other), Some(split)) if other != split => {
                let before = before.line;
                return Err(wrong(
                    line,
                    format!("{file} is for {split}, and in line {before} for {other}"),
                ));
            }
            (None, Some(_)) => before.split = split,
            _ => {}
        }
        n_repeated += 1;
    }
    if n_repeated > 0 {
        tracing::warn!(
            "{}: {n_repeated} rows name a file that a row before has named",
            table.display()
        );
    }
    Ok(files)
}

/// Reads a list of files, one path a line. A path may have any bytes but the end of a line; a byte order mark before the
/// first and empty lines are passed over.
///
/// # Errors
/// [`Error::File`] if the list cannot be read, [`Error::Labels`] if it names no file.
pub(super) fn read_list(list: &Path, folder: &Path) -> Result<Vec<ListedFile>> {
    let bytes = std::fs::read(list).map_err(Error::io(list))?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let (mut files, mut seen, mut n_repeated) = (Vec::new(), HashSet::new(), 0);
    for (place, path) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let path = path.strip_suffix(b"\r").unwrap_or(path);
        if path.is_empty() {
            continue;
        }
        let file = found(&file_names::name_of_bytes(path), folder);
        match seen.insert(file.clone()) {
            true => files.push(ListedFile { line: place + 1, file }),
            false => n_repeated += 1,
        }
    }
    if n_repeated > 0 {
        tracing::warn!(
            "{}: {n_repeated} lines name a file that a line before has named",
            list.display()
        );
    }
    if files.is_empty() {
        return Err(Error::Labels {
            path: list.to_owned(),
            line: 1,
            problem: "no file is named".to_owned(),
        });
    }
    Ok(files)
}

/// UTF-8 with or without a byte order mark, or UTF-16 with one, as spreadsheets write "Unicode text". Names of files
/// may have other bytes than UTF-8.
fn decoded(bytes: &[u8]) -> std::result::Result<Cow<'_, [u8]>, String> {
    let utf16 = |rest: &[u8], number: fn([u8; 2]) -> u16| {
        let numbers: Vec<u16> = rest.as_chunks().0.iter().map(|pair| number(*pair)).collect();
        let text = String::from_utf16(&numbers).map_err(|error| error.to_string());
        text.map(|text| Cow::Owned(text.into_bytes()))
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] | rest => Ok(Cow::Borrowed(rest)),
    }
}

/// What was read, or a line and what is wrong with it.
type Read<T> = std::result::Result<T, (usize, String)>;

fn csv_rows(text: &[u8]) -> Read<Vec<Row>> {
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: &u8| first.iter().filter(|&byte| byte == delimiter).count();
    let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(count).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text);
    let mut columns: Option<Columns> = None;
    let mut rows = Vec::new();
    for record in reader.byte_records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(1, |position| position.line() as usize);
            (line, error.to_string())
        })?;
        let line = record.position().map_or(1, |position| position.line() as usize);
        let Some(known) = columns else {
            let (found, is_header) = Columns::of(&record).map_err(|problem| (line, problem))?;
            columns = Some(found);
            if !is_header {
                rows.push(found.row(line, &record)?);
            }
            continue;
        };
        rows.push(known.row(line, &record)?);
    }
    Ok(rows)
}

/// Where the values stand in a row.
#[derive(Clone, Copy)]
struct Columns {
    file: usize,
    class: usize,
    split: Option<usize>,
}

impl Columns {
    /// By the first row, and whether that is a header. Vertex AI's tables have none: a split or none, an address, a label.
    fn of(first: &csv::ByteRecord) -> std::result::Result<(Self, bool), String> {
        let cells: Vec<String> = (first.iter())
            .map(|cell| String::from_utf8_lossy(cell).trim().to_owned())
            .collect();
        let place = |names: &[&str]| {
            cells
                .iter()
                .position(|cell| names.contains(&cell.to_lowercase().as_str()))
        };
        let is_address = |place: usize| cells.get(place).is_some_and(|cell| cell.starts_with("gs://"));
        match (place(&FILE_NAMES), place(&CLASS_NAMES)) {
            (Some(file), Some(class)) => {
                let split = place(&SPLIT_NAMES);
                Ok((Columns { file, class, split }, true))
            }
            (None, None) if is_address(1) => {
                let (file, class, split) = (1, 2, Some(0));
                Ok((Columns { file, class, split }, false))
            }
            (None, None) if is_address(0) => {
                let (file, class, split) = (0, 1, None);
                Ok((Columns { file, class, split }, false))
            }
            (file, _) => {
                let (what, names) = match file {
                    None => ("files", FILE_NAMES.as_slice()),
                    Some(_) => ("labels", CLASS_NAMES.as_slice()),
                };
                Err(format!(
                    "no column of {what}, expected a header with {}, found {}",
                    names.join(" or "),
                    cells.join(", ")
                ))
            }
        }
    }

    fn row(self, line: usize, record: &csv::ByteRecord) -> Read<Row> {
        let cell = |place: usize| record.get(place).unwrap_or_default();
        let text = |place: usize| -> Read<String> {
            let text = std::str::from_utf8(cell(place)).map_err(|_| (line, NOT_UTF8.to_owned()))?;
            Ok(text.trim().to_owned())
        };
        Ok(Row {
            line,
            file: cell(self.file).to_owned(),
            class: text(self.class)?,
            split: self.split.map(text).transpose()?.unwrap_or_default(),
        })
    }
}

fn json_rows(text: &[u8]) -> Read<Vec<Row>> {
    let text = std::str::from_utf8(text).map_err(|_| (1, NOT_UTF8.to_owned()))?;
    let mut rows = Vec::new();
    for (place, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = place + 1;
        let object: serde_json::Map<String, Value> = serde_json::from_str(&file_names::from_json(text))
            .map_err(|error| (line, format!("no JSON object: {error}")))?;
        let value = |names: &[&str]| {
            let found = object
                .iter()
                .find(|(key, _)| names.contains(&key.to_lowercase().as_str()));
            match found.map(|(_, value)| value) {
                Some(Value::String(text)) => Some(text.to_owned()),
                Some(Value::Null) | None => None,
                Some(other) => Some(other.to_string()),
            }
        };
        let needed = |names: &[&str]| value(names).ok_or_else(|| (line, format!("no {}", names.join(" or "))));
        rows.push(Row {
            line,
            file: file_names::bytes_of(&needed(&FILE_NAMES)?).into_owned(),
            class: needed(&CLASS_NAMES)?.trim().to_owned(),
            split: value(&SPLIT_NAMES).unwrap_or_default().trim().to_owned(),
        });
    }
    Ok(rows)
}

/// The split that a cell names; `None` if it leaves that open. Images for validation are trained on: cross-validation
/// holds some out in turn.
fn split_of(cell: &str) -> std::result::Result<Option<Split>, String> {
    match cell.to_lowercase().as_str() {
        "" | "unassigned" => Ok(None),
        "train" | "training" | "valid" | "validation" | "val" | "validate" => Ok(Some(Split::Train)),
        "test" => Ok(Some(Split::Test)),
        _ => Err(format!("split {cell:?}, expected train, valid or test")),
    }
}

/// Where the file of a row lies below the folder: as it is named, or, if it has an address or a path from a root, without
/// the beginning of that, which may belong to the machine or bucket where the table was made.
fn found(name: &str, folder: &Path) -> String {
    let is_there = |file: &str| folder.join(file_names::path_of(file)).is_file();
    // A backslash may be part of a name, except on Windows, where these may come from.
    let name = plain(&if is_there(name) {
        name.to_owned()
    } else {
        name.replace('\\', "/")
    });
    let absolute = std::path::absolute(folder).ok();
    let path = file_names::path_of(&name);
    let below = [Some(folder), absolute.as_deref()]
        .into_iter()
        .flatten()
        .find_map(|folder| path.strip_prefix(folder).ok());
    if let Some(below) = below {
        return file_names::name_of(below);
    }
    let address = match (name.split_once("?d="), name.split_once("://"), name.split_once(":/")) {
        // Label Studio's local files.
        (Some((_, path)), ..) => percent_decoded(path),
        (_, Some((_, path)), _) => path.to_owned(),
        // A drive of Windows.
        (_, _, Some((_, path))) => path.to_owned(),
        _ if name.starts_with('/') => name.clone(),
        _ => return name,
    };
    if is_there(&name) {
        return name;
    }
    let mut rest = address.trim_start_matches('/');
    loop {
        let mut names = [Some(rest), uploaded(rest)].into_iter().flatten();
        if let Some(file) = names.find(|file| is_there(file)) {
            return file.to_owned();
        }
        match rest.split_once('/') {
            Some((_, shorter)) => rest = shorter,
            None => return name,
        }
    }
}

/// A path without `.` and `..`.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." if parts.last().is_some_and(|last| !last.is_empty() && *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Label Studio puts eight random digits before the name of a file that is uploaded.
fn uploaded(name: &str) -> Option<&str> {
    let (random, original) = name.split_once('-')?;
    (random.len() == 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(original)
}

/// Text in which `%20` stands for a space, and so on.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let text = file_names::bytes_of(text);
    let mut rest: &[u8] = &text;
    while let [first, after @ ..] = rest {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    file_names::name_of_bytes(&bytes)
}

/// The folder of the images: the one that is named, or that of the table.
pub(super) fn folder_of(table: &Path, named: Option<PathBuf>) -> PathBuf {
    named.unwrap_or_else(|| luthier_artifact::folder_of(table).to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Reads a table beside `a.jpg`, `sub/b.jpg` and `c.jpg`; the rows as `file class split`.
    fn rows(table: &[u8]) -> std::result::Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for file in ["a.jpg", "sub/b.jpg", "c.jpg"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let path = folder.path().join("labels.csv");
        fs::write(&path, table).unwrap();
        let shown = |LabelledFile { file, class, split, .. }: LabelledFile| {
            format!(
                "{file} {class} {}",
                split.map_or("-".to_owned(), |split| split.to_string())
            )
        };
        match read(&path, folder.path()) {
            Ok(files) => Ok(files.into_iter().map(shown).collect()),
            Err(Error::Labels { line, problem, .. }) => Err(format!("{line}: {problem}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn tables_are_read_as_spreadsheets_and_tools_write_them() {
        let plain = Ok(vec!["a.jpg harp -".to_owned(), "sub/b.jpg drum, big -".to_owned()]);
        let utf16: Vec<u8> = "\u{feff}file\tlabel\r\na.jpg\tharp\r\nsub/b.jpg\tdrum, big\r\n"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        for table in [
            &b"file,label\na.jpg,harp\nsub/b.jpg,\"drum, big\"\n"[..],
            b"\xEF\xBB\xBFlabel;notes;File\r\nharp;x;a.jpg\r\ndrum, big;;sub/b.jpg\r\n",
            b"path\tclass\na.jpg\tharp\nsub/b.jpg\tdrum, big",
            &utf16,
            // Hugging Face's metadata.jsonl.
            b"{\"file_name\": \"a.jpg\", \"label\": \"harp\"}\n\n{\"file_name\": \"sub/b.jpg\", \"label\": \"drum, big\"}\n",
            // Label Studio's CSV.
            b"annotation_id,annotator,choice,created_at,id,image,lead_time\n1,1,harp,2026,1,/data/upload/1/a.jpg,3\n\
              2,1,\"drum, big\",2026,2,/data/local-files/?d=sub/b.jpg,4\n",
            // Vertex AI's, without splits.
            b"gs://bucket/photos/a.jpg,harp\ngs://bucket/sub/b.jpg,\"drum, big\"\n",
            b"image,class\nC:\\photos\\a.jpg,harp\n/home/ada/sub/b.jpg,\"drum, big\"\n",
        ] {
            assert_eq!(rows(table), plain, "{}", table.escape_ascii());
        }
        assert_eq!(
            rows(b"file,label,split\na.jpg,harp,train\nsub/b.jpg,harp,Validation\nc.jpg,harp,TEST\n").unwrap(),
            ["a.jpg harp train", "sub/b.jpg harp train", "c.jpg harp test"]
        );
        assert_eq!(
            rows(b"TRAIN,gs://bucket/a.jpg,harp\nUNASSIGNED,gs://bucket/c.jpg,drum\n").unwrap(),
            ["a.jpg harp train", "c.jpg drum -"]
        );
        assert_eq!(
            rows(b"image,choice\n/data/upload/3/1f2e3d4c-c.jpg,harp\n").unwrap(),
            ["c.jpg harp -"]
        );
        assert_eq!(
            rows(b"image,choice\n/data/local-files/?d=my%20photos/sub/b.jpg,harp\n").unwrap(),
            ["sub/b.jpg harp -"]
        );
        // One file under several names, empty rows, and a split that only one of two rows says.
        assert_eq!(
            rows(b"file,label,split\na.jpg,harp,\n./sub/../a.jpg,harp,test\n,,\n").unwrap(),
            ["a.jpg harp test"]
        );
        // Names that are not of this folder are not guessed.
        assert_eq!(
            rows(b"file,label\ngrand-c.jpg,harp\nother/a.jpg,drum\n").unwrap(),
            ["grand-c.jpg harp -", "other/a.jpg drum -"]
        );
        // A missing file keeps its name: the scan says that it is missing.
        assert_eq!(rows(b"file,label\ngone.jpg,harp\n").unwrap(), ["gone.jpg harp -"]);
        // Rows that say the same twice are one.
        assert_eq!(rows(b"file,label\na.jpg,harp\na.jpg,harp\n").unwrap(), ["a.jpg harp -"]);
    }

    #[cfg(unix)]
    #[test]
    fn names_with_blanks_and_bytes_that_are_not_utf8_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let names = [&b"caf\xE9.jpg"[..], b" 1.jpg", b"2.jpg"];
        for name in names {
            let path = file_names::path_of(&file_names::name_of_bytes(name));
            fs::write(folder.path().join(path), "").unwrap();
        }
        let table = folder.path().join("labels.csv");
        for text in [
            &b"file,label\ncaf\xE9.jpg,harp\n 1.jpg,harp\n2.jpg,harp\n"[..],
            b" label ; file\n harp;caf\xE9.jpg \nharp; 1.jpg\nharp ; 2.jpg\n",
            // As Python writes names.
            br#"{"file": "caf\udce9.jpg", "label": "harp"}
                {"file": " 1.jpg", "label": "harp"}
                {"file": "2.jpg", "label": "harp"}"#,
        ] {
            fs::write(&table, text).unwrap();
            let found = read(&table, folder.path()).unwrap();
            let found: Vec<String> = found.into_iter().map(|row| row.file).collect();
            assert_eq!(found, names.map(file_names::name_of_bytes));
        }
        // A file that is missing is one of the images that cannot be read, also if its name is not UTF-8.
        fs::write(&table, br#"{"file": "gone\udce9.jpg", "label": "harp"}"#).unwrap();
        let found = read(&table, folder.path()).unwrap();
        assert_eq!(found[0].file, file_names::name_of_bytes(b"gone\xE9.jpg"));
    }

    #[test]
    fn a_list_has_one_path_a_line() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/b.jpg"), "").unwrap();
        let list = folder.path().join("files.txt");
        let read = |text: &[u8]| {
            fs::write(&list, text).unwrap();
            let files = read_list(&list, folder.path());
            files.map(|files| {
                files
                    .into_iter()
                    .map(|found| (found.line, found.file))
                    .collect::<Vec<_>>()
            })
        };
        let below = folder.path().join("sub/b.jpg");
        let text = format!(
            "\u{feff}a, 1.jpg\r\n\r\n{}\n./a, 1.jpg\nsub\\b.jpg\nlast.jpg",
            below.display()
        );
        let expected = [(1, "a, 1.jpg"), (3, "sub/b.jpg"), (6, "last.jpg")];
        assert_eq!(
            read(text.as_bytes()).unwrap(),
            expected.map(|(line, file)| (line, file.to_owned()))
        );
        assert_eq!(
            read(b"caf\xE9.jpg\n").unwrap(),
            [(1, file_names::name_of_bytes(b"caf\xE9.jpg"))]
        );
        let error = read(b"\n\n").unwrap_err();
        assert!(error.to_string().ends_with("files.txt:1: no file is named"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_file() {
        for (table, expected) in [
            (
                &b"file,label\na.jpg,harp\nc.jpg,drum\na.jpg,drum\n"[..],
                "4: a.jpg is drum, and in line 2 harp",
            ),
            (
                b"file,label,split\na.jpg,harp,train\na.jpg,harp,test\n",
                "3: a.jpg is for test, and in line 2 for train",
            ),
            (
                b"file,label,split\na.jpg,harp,dev\n",
                "2: a.jpg: split \"dev\", expected train, valid or test",
            ),
            (b"file,label\na.jpg,\n", "2: a.jpg without a label"),
            (b"file,label\n,harp\n", "2: no file"),
            (
                b"name,label\na.jpg,harp\n",
                "1: no column of files, expected a header with file or path or image or file_name or filename or \
                 filepath or file_path or image_path or image_uri or uri, found name, label",
            ),
            (
                b"file,colour\na.jpg,red\n",
                "1: no column of labels, expected a header with label or class or choice or category or class_name, \
                 found file, colour",
            ),
            (
                b"{\"file\": \"a.jpg\"}\n",
                "1: no label or class or choice or category or class_name",
            ),
            (
                b"file,label\n\xE9.jpg,harp\n",
                "2: other bytes than UTF-8: save the table as UTF-8",
            ),
            (
                b"file,label\na.jpg,lut\xE9\n",
                "2: other bytes than UTF-8: save the table as UTF-8",
            ),
        ] {
            assert_eq!(rows(table).unwrap_err(), expected);
        }
    }
}
