/// Watches work, and says whether it may go on.
pub trait Observer: Sync {
    /// Work on `total` units of something begins, for example 1,806 `images`. It lasts until the task is dropped; a total
    /// of 0 is one that nobody knows.
    fn task(&self, what: &str, total: u64) -> Box<dyn Task + '_>;
    /// Whether the user wants it to stop.
    fn is_interrupted(&self) -> bool;
}

/// Work that an [`Observer`] watches. Dropping it ends the work, also if an error cut it short.
pub trait Task: Sync {
    /// So many more units are done.
    fn advance(&self, units: u64);
}

/// Nobody watches and nobody interrupts.
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
