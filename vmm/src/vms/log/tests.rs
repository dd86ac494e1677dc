use super::*;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

const OUT: LogStream = LogStream::Stdout;
const ERR: LogStream = LogStream::Stderr;

fn show(dir: &Path, show: Show) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    LogReader::new(dir.to_owned())
        .print(show, &mut out, &mut err)
        .unwrap();
    (
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

fn tail(dir: &Path, lines: u64) -> (String, String) {
    let tail = Some(lines);
    show(
        dir,
        Show {
            tail,
            ..Show::default()
        },
    )
}

#[test]
fn streams_come_back_apart_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(show(dir.path(), Show::default()), <_>::default());
    let log = LogWriter::open(dir.path()).unwrap();
    log.append(OUT, b"a\nb").unwrap();
    log.append(ERR, b"wrong\n").unwrap();
    log.append(OUT, b"c\n\n").unwrap();
    let big = vec![b'x'; 3 * MAX_CHUNK + 1];
    log.append(ERR, &big).unwrap();
    let (out, err) = show(dir.path(), Show::default());
    assert_eq!(out, "a\nbc\n\n");
    assert_eq!(err.len(), "wrong\n".len() + big.len());
}

#[test]
fn the_tail_is_counted_in_lines_of_both_streams() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogWriter::open(dir.path()).unwrap();
    for (stream, text) in [(OUT, "1\n2\n3"), (ERR, "4\n"), (OUT, " still 3\n5")] {
        log.append(stream, text.as_bytes()).unwrap();
    }
    let texts = |lines| {
        let (out, err) = tail(dir.path(), lines);
        (out, err)
    };
    assert_eq!(texts(0), (String::new(), String::new()));
    assert_eq!(texts(1), ("5".into(), String::new()));
    assert_eq!(texts(2), ("5".into(), "4\n".into()));
    assert_eq!(texts(3), ("3 still 3\n5".into(), "4\n".into()));
    assert_eq!(texts(99), ("1\n2\n3 still 3\n5".into(), "4\n".into()));
}

#[test]
fn each_line_gets_the_time_at_which_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogWriter::open(dir.path()).unwrap();
    for part in ["one", " line\ntw", "o\n"] {
        log.append(OUT, part.as_bytes()).unwrap();
    }
    let (out, _) = show(
        dir.path(),
        Show {
            timestamps: true,
            ..Show::default()
        },
    );
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    for (line, text) in lines.iter().zip(["one line", "two"]) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!((rest, time.len()), (text, 30), "{out}");
    }
}

#[test]
fn old_records_go_when_both_files_are_full() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogWriter::with_segment(dir.path(), 1000).unwrap();
    let lines: Vec<_> = (0..500).map(|number| format!("line {number}\n")).collect();
    for line in &lines {
        log.append(OUT, line.as_bytes()).unwrap();
    }
    let sizes =
        [current(dir.path()), previous(dir.path())].map(|path| fs::metadata(path).unwrap().len());
    assert!(sizes.iter().all(|len| *len <= 1000), "{sizes:?}");
    let (out, _) = show(dir.path(), Show::default());
    assert!(lines.concat().ends_with(&out), "{out}");
    assert!(out.lines().count() > 40, "{out}");
}

#[test]
fn a_writer_goes_on_behind_the_last_whole_record() {
    let dir = tempfile::tempdir().unwrap();
    LogWriter::open(dir.path())
        .unwrap()
        .append(OUT, b"whole\n")
        .unwrap();
    let mut file = OpenOptions::new()
        .append(true)
        .open(current(dir.path()))
        .unwrap();
    // A header that promises more than there is.
    file.write_all(&[50, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b'p'])
        .unwrap();
    assert_eq!(show(dir.path(), Show::default()).0, "whole\n");
    LogWriter::open(dir.path())
        .unwrap()
        .append(OUT, b"next\n")
        .unwrap();
    assert_eq!(show(dir.path(), Show::default()).0, "whole\nnext\n");
}

#[test]
fn a_damaged_log_is_told_and_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(current(dir.path()), [0xff; 100]).unwrap();
    let reader = LogReader::new(dir.path().to_owned());
    let error = reader
        .print(Show::default(), &mut Vec::new(), &mut Vec::new())
        .unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

/// The first look comes when there is no file yet, the next when the first is full already.
#[test]
fn a_reader_that_found_nothing_starts_with_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = reader::Source::oldest(dir.path()).unwrap();
    assert!(source.next().unwrap().is_none());
    let log = LogWriter::with_segment(dir.path(), 100).unwrap();
    for number in 0..12 {
        log.append(OUT, &[number]).unwrap();
    }
    for number in 0..12 {
        assert_eq!(source.next().unwrap().unwrap().1, [number]);
    }
    assert!(source.next().unwrap().is_none());
}

/// Followed from its first moment, through a rotation, to the end: nothing is missing.
#[test]
fn a_follower_sees_all_of_it_and_ends_with_the_vm() {
    let dir = tempfile::tempdir().unwrap();
    let end: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (seen, wanted) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut out = Vec::new();
            LogReader::new(dir.path().to_owned())
                .follow(Show::default(), &end, &mut out, &mut Vec::new())
                .unwrap();
            String::from_utf8(out).unwrap()
        });
        let log = LogWriter::with_segment(dir.path(), 30_000).unwrap();
        let mut wanted = String::new();
        for number in 0..2000 {
            let line = format!("line {number}\n");
            log.append(OUT, line.as_bytes()).unwrap();
            wanted.push_str(&line);
        }
        rustix::io::write(&end, &1_u64.to_ne_bytes()).unwrap();
        (follower.join().unwrap(), wanted)
    });
    assert_eq!(seen, wanted);
}
