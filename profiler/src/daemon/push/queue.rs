//! What is yet to be sent, on disk: in order, bounded, there after a restart.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Largest request that is read back.
const MAX_REQUEST_BYTES: u64 = 64 << 20;

/// Requests for one store, oldest first.
#[derive(Debug)]
pub(super) struct Queue {
    directory: PathBuf,
    max_bytes: u64,
    /// Numbers and sizes.
    waiting: VecDeque<(u64, u64)>,
    next: u64,
    /// Requests that had to make room, or could not be written or read.
    pub(super) dropped: u64,
}

impl Queue {
    /// Opens a queue, or begins it. `max_bytes`: of all requests in it.
    pub(super) fn open(directory: &Path, max_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut waiting: Vec<(u64, u64)> = Vec::new();
        for entry in fs::read_dir(directory)?.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".request")?.parse().ok());
            match (number, entry.metadata()) {
                (Some(number), Ok(metadata)) if metadata.is_file() => waiting.push((number, metadata.len())),
                // What was not complete.
                (None, _) if name.to_str().is_some_and(|name| name.ends_with(".new")) => fs::remove_file(entry.path())?,
                _ => {}
            }
        }
        waiting.sort_unstable();
        let next = waiting.last().map_or(0, |(number, _)| number + 1);
        let mut queue = Self { directory: directory.to_owned(), max_bytes, waiting: waiting.into(), next, dropped: 0 };
        queue.make_room(0);
        Ok(queue)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:020}.request"))
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.waiting.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Drops the oldest until so many bytes more are within the limit.
    fn make_room(&mut self, bytes: u64) {
        while self.bytes().saturating_add(bytes) > self.max_bytes && self.drop_first() {
            self.dropped += 1;
        }
    }

    fn drop_first(&mut self) -> bool {
        let Some((number, _)) = self.waiting.pop_front() else { return false };
        // Whether or not it is there still.
        let _ = fs::remove_file(self.path(number));
        true
    }

    /// Puts a request behind the others.
    pub(super) fn push(&mut self, request: &[u8]) {
        let bytes = request.len() as u64;
        if bytes > self.max_bytes {
            self.dropped += 1;
            return;
        }
        self.make_room(bytes);
        let number = self.next;
        self.next += 1;
        let new = self.directory.join(format!("{number:020}.new"));
        if write(&new, request).and_then(|()| fs::rename(&new, self.path(number))).is_ok() {
            self.waiting.push_back((number, bytes));
        } else {
            // A full disk, most likely.
            let _ = fs::remove_file(&new);
            self.dropped += 1;
        }
    }

    /// The oldest request and its number, which stays until [`Queue::sent`] says otherwise.
    pub(super) fn first(&mut self) -> Option<(u64, Vec<u8>)> {
        while let Some(&(number, bytes)) = self.waiting.front() {
            match read(&self.path(number)) {
                Ok(request) if request.len() as u64 == bytes => return Some((number, request)),
                _ => {
                    self.drop_first();
                    self.dropped += 1;
                }
            }
        }
        None
    }

    /// Forgets a request that was sent, or refused for good.
    pub(super) fn sent(&mut self, number: u64) {
        if self.waiting.front().is_some_and(|(first, _)| *first == number) {
            self.drop_first();
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_REQUEST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_in_order_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(directory.path(), 1000).unwrap();
        for number in 0..5_u8 {
            queue.push(&[number; 10]);
        }
        let (number, request) = queue.first().unwrap();
        assert_eq!(request, [0; 10]);
        queue.sent(number);
        fs::write(directory.path().join("00000000000000000009.new"), "half").unwrap();
        let mut queue = Queue::open(directory.path(), 1000).unwrap();
        assert_eq!((queue.len(), queue.bytes(), queue.dropped), (4, 40, 0));
        assert_eq!(queue.first().unwrap().1, [1; 10]);
        // One that was damaged is left out.
        fs::write(queue.path(1), "x").unwrap();
        assert_eq!(queue.first().unwrap().1, [2; 10]);
        assert_eq!(queue.dropped, 1);
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(directory.path(), 100).unwrap();
        for number in 0..25_u8 {
            queue.push(&[number; 10]);
            assert!(queue.bytes() <= 100);
        }
        assert_eq!((queue.len(), queue.dropped), (10, 15));
        assert_eq!(queue.first().unwrap().1, [15; 10]);
        queue.push(&[0; 101]);
        assert_eq!((queue.len(), queue.dropped), (10, 16));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 10);
    }
}
