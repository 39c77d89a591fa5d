/// Follows work that takes a while, and decides whether it goes on.
///
/// The libraries call it from several threads. They ask [`is_interrupted`](Observer::is_interrupted) several times a
/// second.
pub trait Observer: Sync {
    /// Work on `total` units of something begins, for example 1,806 `images`. The work lasts until the task is dropped. A
    /// total of 0 means that nobody knows the total.
    fn task(&self, what: &str, total: u64) -> Box<dyn Task + '_>;
    /// Whether the user wants the work to stop.
    fn is_interrupted(&self) -> bool;
}

/// Work that an [`Observer`] watches. Dropping it ends the work, also if an error cut it short.
pub trait Task: Sync {
    /// So many more units are done.
    fn advance(&self, units: u64);
}

/// An [`Observer`] with the task that it watches now, for work that is handed from function to function.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// Asked whether the work goes on.
    pub observer: &'a dyn Observer,
    /// Told of each unit that is done.
    pub task: &'a dyn Task,
}

/// The user wants the work to stop.
///
/// Rows that are read for an [`Observer`] end with this error inside [`ReadError`](crate::ReadError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Shows nothing and never interrupts.
impl Observer for () {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(())
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

impl Task for () {
    fn advance(&self, _: u64) {}
}
