//! Runs in their order, those that wait for another's result after it.

use super::plan::Job;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Hands out runs to any number of threads.
pub(super) struct Queue {
    left: Mutex<Left>,
    changed: Condvar,
}

struct Left {
    jobs: VecDeque<Job>,
    /// Group, variant and seed of runs that are under way.
    running: BTreeSet<Key>,
    /// Nothing starts after a failure.
    failed: bool,
}

type Key = (String, String, u64);

fn key(job: &Job) -> Key {
    (job.group.clone(), job.variant.clone(), job.seed)
}

impl Queue {
    pub fn new(jobs: Vec<Job>) -> Self {
        let left = Left { jobs: jobs.into(), running: BTreeSet::new(), failed: false };
        Self { left: Mutex::new(left), changed: Condvar::new() }
    }

    /// The next run that waits for nothing; `None` when there is nothing left to start.
    pub fn next(&self) -> Option<Job> {
        let mut left = self.lock();
        loop {
            if left.failed || left.jobs.is_empty() {
                return None;
            }
            if let Some(at) = (0..left.jobs.len()).find(|&at| left.is_ready(&left.jobs[at])) {
                let job = left.jobs.remove(at)?;
                left.running.insert(key(&job));
                return Some(job);
            }
            // Everything left waits for a run that is under way.
            left = self.changed.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A run has ended, well or not.
    pub fn done(&self, job: &Job, well: bool) {
        let mut left = self.lock();
        left.running.remove(&key(job));
        left.failed |= !well;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Left {
    fn is_ready(&self, job: &Job) -> bool {
        let Some(after) = &job.after else { return true };
        let first = (job.group.clone(), after.clone(), job.seed);
        !self.running.contains(&first) && !self.jobs.iter().any(|job| key(job) == first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(variant: &str, after: Option<&str>) -> Job {
        Job { group: "g".into(), variant: variant.into(), seed: 1, after: after.map(Into::into) }
    }

    #[test]
    fn a_run_waits_for_the_one_that_it_is_matched_with() {
        let queue = Queue::new(vec![job("b", Some("a")), job("a", None), job("c", None)]);
        let first = queue.next().unwrap();
        assert_eq!(first.variant, "a");
        assert_eq!(queue.next().unwrap().variant, "c");
        let waited = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next());
            queue.done(&first, true);
            waiting.join().unwrap()
        });
        assert_eq!(waited.unwrap().variant, "b");
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn nothing_starts_after_a_failure() {
        let queue = Queue::new(vec![job("a", None), job("b", None)]);
        let first = queue.next().unwrap();
        queue.done(&first, false);
        assert_eq!(queue.next(), None);
    }
}
