//! Texts that thousands of objects have in common, each in memory once.

use std::{collections::HashSet, sync::Arc};

/// So many texts are kept before any is looked for that nobody uses.
const SMALLEST: usize = 16;

/// The texts that are in use. Those that are not are forgotten now and then, at the latest when they are half of all.
#[derive(Debug, Default)]
pub struct Texts {
    known: HashSet<Arc<str>>,
    /// How many there may be until those that nobody uses are forgotten.
    room: usize,
}

impl Texts {
    /// The one copy of a text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.room {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.room = (2 * self.known.len()).max(SMALLEST);
        }
        let text: Arc<str> = text.into();
        self.known.insert(Arc::clone(&text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let mut texts = Texts::default();
        let (one, two) = (texts.share("a"), texts.share(&String::from("a")));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(&*texts.share("b"), "b");
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_what_is_used_is_not() {
        let mut texts = Texts::default();
        let used = texts.share("used");
        for number in 0..100 * SMALLEST {
            texts.share(&number.to_string());
        }
        assert!(texts.known.len() <= 2 * SMALLEST, "{}", texts.known.len());
        assert!(Arc::ptr_eq(&used, &texts.share("used")));
    }
}
