/// Follows work that takes a while, and decides whether it goes on.
///
/// The libraries call it from several threads. They ask [`is_interrupted`](Observer::is_interrupted) several times a
/// second.
pub trait Observer: Sync {
    /// Work on `total` units of something begins, for example 1,806 `images`.
    fn begin(&self, what: &str, total: u64);
    /// So many more units are done.
    fn advance(&self, units: u64);
    /// The work is over.
    fn end(&self);
    /// Whether the user wants the work to stop.
    fn is_interrupted(&self) -> bool;
}

/// The user wants the work to stop.
///
/// Rows that are read for an [`Observer`] end with this error inside [`ReadError`](crate::ReadError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Shows nothing and never interrupts.
impl Observer for () {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}
