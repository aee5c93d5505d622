//! What processes have used that come and go: a sum that never falls, counts nobody twice, and forgets nobody whose
//! parent asked for him.
//!
//! The kernel adds what a process has used to its parent's `children` when the parent waits for it. What a child used
//! that was never seen, since it lived for less than a slice, is found there. What one used that was seen before is
//! there a second time, and is taken off.

use std::collections::BTreeMap;

/// What is added up: user ns, system ns, minor faults, major faults, bytes read, bytes written.
pub(super) type Used = [u64; 6];

/// Most generations between a process that has ended and the one that has inherited from it.
const MAX_GENERATIONS: usize = 64;

/// A process.
#[derive(Clone, Copy, Debug)]
struct Account {
    parent: u32,
    own: Used,
    /// Of children that it has waited for.
    children: Used,
    /// What came to `children` since the last settlement.
    credit: Used,
    /// What those of its children had been seen to use that have ended since.
    debt: Used,
    /// A debt that the last settlement found no credit for: the child had ended, and nobody had waited for it yet.
    owed: Used,
}

/// The processes of the target.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Whether children are part of the target, so that what they leave counts.
    inherits: bool,
    accounts: BTreeMap<u32, Account>,
    used: Used,
}

impl Accounts {
    pub(super) const fn new(inherits: bool) -> Self {
        Self { inherits, accounts: BTreeMap::new(), used: [0; 6] }
    }

    /// Whether children are part of the target.
    pub(super) const fn inherits(&self) -> bool {
        self.inherits
    }

    /// What has been used so far, since the first process joined.
    pub(super) const fn used(&self) -> Used {
        self.used
    }

    /// Adds a process. `is_new`: it began within the slice, so that all it has used counts.
    pub(super) fn join(&mut self, pid: u32, parent: u32, own: Used, children: Used, is_new: bool) {
        let nothing = [0; 6];
        let mut account = Account { parent, own, children, credit: nothing, debt: nothing, owed: nothing };
        if is_new {
            (account.own, account.children) = (nothing, nothing);
        }
        self.accounts.insert(pid, account);
        self.update(pid, parent, own, children);
    }

    /// Takes in what a process has used by now.
    pub(super) fn update(&mut self, pid: u32, parent: u32, own: Used, children: Used) {
        let Some(account) = self.accounts.get_mut(&pid) else { return };
        account.parent = parent;
        for kind in 0..own.len() {
            self.used[kind] += own[kind].saturating_sub(account.own[kind]);
            account.credit[kind] += children[kind].saturating_sub(account.children[kind]);
            account.own[kind] = account.own[kind].max(own[kind]);
            account.children[kind] = account.children[kind].max(children[kind]);
        }
    }

    /// Forgets a process that is not part of the target any more.
    pub(super) fn leave(&mut self, pid: u32) {
        self.accounts.remove(&pid);
    }

    /// Ends a reading. `gone`: those that have ended since the last.
    pub(super) fn settle(&mut self, gone: &[u32]) {
        let gone: BTreeMap<u32, Account> =
            gone.iter().filter_map(|pid| Some((*pid, self.accounts.remove(pid)?))).collect();
        if !self.inherits {
            return;
        }
        for ended in gone.values() {
            // Its parent may have ended as well, and left all to its own.
            let mut heir = ended.parent;
            for _ in 0..MAX_GENERATIONS {
                let Some(parent) = gone.get(&heir) else { break };
                heir = parent.parent;
            }
            if let Some(heir) = self.accounts.get_mut(&heir) {
                for kind in 0..heir.debt.len() {
                    heir.debt[kind] += ended.own[kind] + ended.children[kind];
                }
            }
        }
        for account in self.accounts.values_mut() {
            for kind in 0..account.credit.len() {
                let credit = account.credit[kind].saturating_sub(account.owed[kind]);
                self.used[kind] += credit.saturating_sub(account.debt[kind]);
                // For one settlement only: what is not there by then never comes.
                account.owed[kind] = account.debt[kind].saturating_sub(credit);
            }
            (account.credit, account.debt) = ([0; 6], [0; 6]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 10;

    fn user(ns: u64) -> Used {
        [ns, 0, 0, 0, 0, 0]
    }

    /// A tree whose root began before it was looked at.
    fn tree() -> Accounts {
        let mut accounts = Accounts::new(true);
        accounts.join(ROOT, 1, user(500), user(300), false);
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(0));
        accounts
    }

    #[test]
    fn a_child_that_was_never_seen_counts_by_its_parent() {
        let mut accounts = tree();
        accounts.update(ROOT, 1, user(510), user(340));
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(50));
    }

    #[test]
    fn a_child_that_was_seen_counts_once() {
        let mut accounts = tree();
        accounts.join(11, ROOT, user(20), user(0), true);
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(20));
        // It used 5 more, and its child 3; then its parent waited for it.
        accounts.update(ROOT, 1, user(500), user(328));
        accounts.settle(&[11]);
        assert_eq!(accounts.used(), user(28));
    }

    #[test]
    fn a_child_that_nobody_has_waited_for_yet_counts_once() {
        let mut accounts = tree();
        accounts.join(11, ROOT, user(20), user(0), true);
        accounts.settle(&[]);
        // It was found gone after the parent had been read.
        accounts.settle(&[11]);
        assert_eq!(accounts.used(), user(20));
        accounts.update(ROOT, 1, user(500), user(325));
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(25));
    }

    #[test]
    fn what_never_came_is_not_taken_from_what_comes_later() {
        let mut accounts = tree();
        accounts.join(11, ROOT, user(20), user(0), true);
        accounts.settle(&[]);
        accounts.settle(&[11]);
        accounts.settle(&[]);
        accounts.update(ROOT, 1, user(500), user(330));
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(50));
    }

    #[test]
    fn generations_that_end_together_leave_all_to_the_one_that_is_left() {
        let mut accounts = tree();
        accounts.join(11, ROOT, user(20), user(0), true);
        accounts.join(12, 11, user(7), user(0), true);
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(27));
        accounts.update(ROOT, 1, user(500), user(300 + 20 + 7 + 1));
        accounts.settle(&[11, 12]);
        assert_eq!(accounts.used(), user(28));
    }

    #[test]
    fn the_sum_stays_when_everybody_ends() {
        let mut accounts = tree();
        accounts.update(ROOT, 1, user(550), user(300));
        accounts.settle(&[ROOT]);
        assert_eq!(accounts.used(), user(50));
        // A cycle of parents, which a process cannot make but a reused number could.
        accounts.join(11, 12, user(1), user(0), true);
        accounts.join(12, 11, user(1), user(0), true);
        accounts.settle(&[11, 12]);
        assert_eq!(accounts.used(), user(52));
    }

    #[test]
    fn children_are_not_the_targets_unless_they_were_asked_for() {
        let mut accounts = Accounts::new(false);
        accounts.join(ROOT, 1, user(500), user(300), false);
        accounts.update(ROOT, 1, user(510), user(900));
        accounts.settle(&[]);
        assert_eq!(accounts.used(), user(10));
    }
}
