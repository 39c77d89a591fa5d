//! A folder that is watched: the images in it, and those that arrive.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use luthier_artifact::{FileStat, Observer};
use luthier_extract::{FoundImages, find_images};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, WatcherKind};

use crate::{Error, Result};

/// How long a file must not have changed before it is taken to be complete.
const QUIET: Duration = Duration::from_secs(1);

/// How soon news, and an interrupt, are noticed.
const TICK: Duration = Duration::from_millis(100);

/// How often the folder is listed where the system does not tell of changes.
const POLL: Duration = Duration::from_secs(2);

/// How often it is listed where the system does: it does not tell of what other machines do in a network folder.
const CHECK: Duration = Duration::from_secs(30);

/// The images of a folder, each when it is complete, and again whenever it has changed.
pub struct Arrivals {
    folder: PathBuf,
    /// What the folder is called in the system's news.
    absolute: PathBuf,
    /// The system's news, if it gives any; the watcher ends when it is dropped.
    news: Option<(RecommendedWatcher, Receiver<notify::Result<Event>>)>,
    files: Files,
    /// Whether there was news since the folder was listed.
    is_changed: bool,
    /// When the folder is listed next: with news, and without.
    next_listing: [Instant; 2],
    /// The folders that cannot be listed, of which the user was told.
    warned_of: HashSet<PathBuf>,
}

impl Arrivals {
    /// Begins to watch a folder and the folders below it.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder has no absolute path.
    pub fn watch(folder: PathBuf) -> Result<Self> {
        let absolute = std::path::absolute(&folder).map_err(Error::io(&folder))?;
        let news = match news_of(&absolute) {
            Ok(news) => Some(news),
            Err(error) => {
                tracing::warn!(
                    "{}: the system does not tell of changes ({error}): looking every {} s",
                    folder.display(),
                    POLL.as_secs()
                );
                None
            }
        };
        Ok(Arrivals {
            folder,
            absolute,
            news,
            files: Files::new(RecommendedWatcher::kind()),
            is_changed: false,
            next_listing: [Instant::now(); 2],
            warned_of: HashSet::new(),
        })
    }

    /// Waits for images that are complete; `None` once the observer interrupts.
    ///
    /// # Errors
    /// [`Error::Extract`] if the folder cannot be listed.
    pub fn next(&mut self, observer: &dyn Observer) -> Result<Option<Vec<PathBuf>>> {
        while !observer.is_interrupted() {
            self.take_news();
            let [with_news, without] = self.next_listing;
            let start = Instant::now();
            if start >= if self.is_changed { with_news } else { without } {
                self.is_changed = false;
                let FoundImages {
                    images, passed_over, ..
                } = find_images(&self.folder, &[])?;
                for folder in passed_over {
                    if self.warned_of.insert(folder.path.clone()) {
                        tracing::warn!("{folder}");
                    }
                }
                self.files.list(images, start);
                let end = Instant::now();
                // Where images arrive all the time, a tenth of it goes into listing a large folder.
                let pause = 9 * (end - start);
                let interval = if self.news.is_some() { CHECK } else { POLL };
                self.next_listing = [end + pause, end + pause.max(interval)];
            }
            let complete = self.files.complete(Instant::now(), SystemTime::now());
            if !complete.is_empty() {
                return Ok(Some(complete));
            }
            std::thread::sleep(TICK);
        }
        Ok(None)
    }

    fn take_news(&mut self) {
        let Some((_, news)) = &self.news else { return };
        for event in news.try_iter() {
            let Ok(mut event) = event else {
                // Something was missed.
                self.is_changed = true;
                continue;
            };
            for path in &mut event.paths {
                if let Ok(below) = path.strip_prefix(&self.absolute) {
                    *path = self.folder.join(below);
                }
            }
            self.is_changed |= self.files.take(&event);
        }
    }
}

fn news_of(folder: &Path) -> notify::Result<(RecommendedWatcher, Receiver<notify::Result<Event>>)> {
    let (send, receive) = channel();
    let mut watcher = notify::recommended_watcher(send)?;
    watcher.watch(folder, RecursiveMode::Recursive)?;
    Ok((watcher, receive))
}

/// What is known of the files in the folder.
struct Files {
    /// Whether the system tells that a file was closed. Only Linux does (inotify): elsewhere a file that is written in
    /// place would be waited for without end.
    tells_of_closing: bool,
    /// As they were when they were passed on.
    passed_on: HashMap<PathBuf, FileStat>,
    /// Those that have changed, or are new: as they were last, and since when.
    waiting: HashMap<PathBuf, (FileStat, Instant)>,
    /// Those that somebody has written to and not closed.
    written_to: HashSet<PathBuf>,
}

impl Files {
    fn new(watcher: WatcherKind) -> Self {
        Files {
            tells_of_closing: watcher == WatcherKind::Inotify,
            passed_on: HashMap::new(),
            waiting: HashMap::new(),
            written_to: HashSet::new(),
        }
    }

    /// Takes note of an event; the result is whether the folder must be listed again.
    fn take(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            // Events were lost, that of a closed file perhaps among them.
            self.written_to.clear();
            return true;
        }
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) if self.tells_of_closing => {
                self.written_to.extend(event.paths.iter().cloned())
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => {
                event.paths.iter().for_each(|path| {
                    self.written_to.remove(path);
                });
            }
            // Reading changes nothing.
            EventKind::Access(_) => return false,
            _ => {}
        }
        true
    }

    /// Takes over which files there are now.
    fn list(&mut self, files: Vec<PathBuf>, now: Instant) {
        let files: HashSet<PathBuf> = files.into_iter().collect();
        self.passed_on.retain(|file, _| files.contains(file));
        self.waiting.retain(|file, _| files.contains(file));
        self.written_to.retain(|file| files.contains(file));
        for file in files {
            let Ok(stat) = FileStat::of(&file) else { continue };
            if self.passed_on.get(&file) != Some(&stat) {
                self.waiting.entry(file).or_insert((stat, now));
            }
        }
    }

    /// The files that have not changed for long enough, in order; they are passed on once.
    ///
    /// A file that was last changed before it was seen need not be waited for.
    fn complete(&mut self, now: Instant, clock: SystemTime) -> Vec<PathBuf> {
        let mut complete = Vec::new();
        self.waiting.retain(|file, (stat, since)| {
            let Ok(metadata) = std::fs::metadata(file) else {
                return false;
            };
            let found = FileStat::new(&metadata);
            if found != *stat {
                (*stat, *since) = (found, now);
            }
            let age = metadata
                .modified()
                .ok()
                .and_then(|modified| clock.duration_since(modified).ok());
            let is_quiet = age.is_some_and(|age| age >= QUIET) || now.duration_since(*since) >= QUIET;
            if !is_quiet || self.written_to.contains(file) {
                return true;
            }
            self.passed_on.insert(file.clone(), found);
            complete.push(file.clone());
            false
        });
        complete.sort_unstable();
        complete
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use notify::event::{DataChange, Flag, RemoveKind};

    use super::*;

    const INSTANT: Duration = Duration::from_millis(1);

    /// A folder with one file, which was changed at `changed`.
    struct Watched {
        folder: tempfile::TempDir,
        file: PathBuf,
        files: Files,
        changed: SystemTime,
        start: Instant,
    }

    impl Watched {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut watched = Watched {
                file: folder.path().join("1.jpg"),
                folder,
                files: Files::new(WatcherKind::Inotify),
                changed: SystemTime::now(),
                start: Instant::now(),
            };
            watched.write("one", Duration::ZERO);
            watched
        }

        /// Writes to the file so long after the start.
        fn write(&mut self, bytes: &str, after: Duration) {
            fs::write(&self.file, bytes).unwrap();
            let file = File::options().write(true).open(&self.file).unwrap();
            file.set_modified(self.changed + after).unwrap();
            let listed = find_images(self.folder.path(), &[]).unwrap().images;
            self.files.list(listed, self.start + after);
        }

        fn event(&mut self, kind: EventKind) -> bool {
            self.files.take(&Event::new(kind).add_path(self.file.clone()))
        }

        /// How many files are complete so long after the start.
        fn complete(&mut self, after: Duration) -> usize {
            self.files.complete(self.start + after, self.changed + after).len()
        }
    }

    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));

    #[test]
    fn a_file_is_complete_once_it_is_quiet_and_again_when_it_has_changed() {
        let mut watched = Watched::new();
        assert_eq!(watched.complete(QUIET - INSTANT), 0);
        watched.write("more", QUIET);
        assert_eq!(watched.complete(QUIET + INSTANT), 0);
        assert_eq!(watched.complete(2 * QUIET), 1);
        assert_eq!(watched.complete(9 * QUIET), 0);
        watched.write("even more", 10 * QUIET);
        assert_eq!(watched.complete(10 * QUIET + INSTANT), 0);
        assert_eq!(watched.complete(11 * QUIET), 1);
    }

    #[test]
    fn a_file_of_the_future_is_complete_when_it_stays_as_it_is() {
        let mut watched = Watched::new();
        watched.write("one", 1000 * QUIET);
        assert_eq!(watched.complete(INSTANT), 0);
        assert_eq!(watched.complete(3 * QUIET), 1);
    }

    #[test]
    fn a_file_that_is_written_to_is_complete_only_when_it_is_closed() {
        let mut watched = Watched::new();
        assert!(watched.event(WRITTEN));
        assert_eq!(watched.complete(9 * QUIET), 0);
        assert!(!watched.event(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert_eq!(watched.complete(9 * QUIET), 0);
        assert!(watched.event(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert_eq!(watched.complete(9 * QUIET), 1);

        watched.write("more", 10 * QUIET);
        watched.event(WRITTEN);
        // Its end may be among the events that were lost.
        assert!(watched.files.take(&Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert_eq!(watched.complete(11 * QUIET), 1);
    }

    #[test]
    fn a_file_is_complete_once_it_is_quiet_where_nobody_tells_that_it_was_closed() {
        for watcher in [
            WatcherKind::Fsevent,
            WatcherKind::Kqueue,
            WatcherKind::ReadDirectoryChangesWatcher,
        ] {
            let mut watched = Watched::new();
            watched.files.tells_of_closing = Files::new(watcher).tells_of_closing;
            assert!(watched.event(WRITTEN));
            assert_eq!(watched.complete(QUIET - INSTANT), 0);
            assert_eq!(watched.complete(9 * QUIET), 1, "{watcher:?}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut watched = Watched::new();
        watched.event(WRITTEN);
        fs::remove_file(&watched.file).unwrap();
        watched.event(EventKind::Remove(RemoveKind::File));
        assert_eq!(watched.complete(9 * QUIET), 0);
        watched.write("one", 10 * QUIET);
        assert_eq!(watched.complete(11 * QUIET), 1);
        let now = watched.start;
        watched.files.list(Vec::new(), now);
        watched.files.list(vec![watched.file.clone()], now);
        assert_eq!(watched.complete(11 * QUIET), 1, "it has come back");
    }
}
