/// Told how long work proceeds, and asked whether it may go on.
pub trait Observer: Sync {
    /// Work on `total` units of something begins, for example 1,806 `images`.
    fn begin(&self, what: &str, total: u64);
    /// So many more units are done.
    fn advance(&self, units: u64);
    /// The work is over.
    fn end(&self);
    /// Whether the user wants it to stop.
    fn is_interrupted(&self) -> bool;
}

/// Nobody watches and nobody interrupts.
impl Observer for () {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn is_interrupted(&self) -> bool {
        false
    }
}
