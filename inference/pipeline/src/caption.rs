//! How a caption grows: which token is forced, which are forbidden, which crops are done. No torch here.

use serde::{Deserialize, Serialize};

/// The rules of greedy generation, as the captioner's own `generation_config.json` and OmniParser's service set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationRules {
    /// What the decoder sees before the first token (2, BART's end token).
    pub start_token: i64,
    /// The first token, whatever the logits say (0).
    pub forced_first_token: Option<i64>,
    /// The last token at full length, whatever the logits say (2).
    pub forced_last_token: Option<i64>,
    /// The token that ends a caption (2).
    pub end_token: i64,
    /// No sequence of this many tokens, start token included, comes twice (3); 0 allows it.
    pub no_repeat_ngram: usize,
    /// Most tokens after the start token, forced ones included (20).
    pub max_new_tokens: usize,
}

impl GenerationRules {
    /// The token that must stand at `place`, counted from 0 behind the start token.
    pub const fn forced(&self, place: usize) -> Option<i64> {
        if place + 1 == self.max_new_tokens
            && let Some(token) = self.forced_last_token
        {
            return Some(token);
        }
        if place == 0 { self.forced_first_token } else { None }
    }

    /// Tokens that would repeat a sequence of `history`, which begins with the start token.
    pub fn banned<'a>(&self, history: &'a [i64]) -> impl Iterator<Item = i64> + use<'a> {
        let size = self.no_repeat_ngram;
        let last = size
            .checked_sub(1)
            .and_then(|length| history.len().checked_sub(length))
            .map(|start| &history[start..]);
        last.into_iter().flat_map(move |last| {
            let repeats = history.windows(size).filter(|known| known.starts_with(last));
            repeats.filter_map(|known| known.last().copied())
        })
    }
}

/// The captions of one batch while they grow, a token a step. A crop whose caption has ended takes part no more.
#[derive(Debug, Clone)]
pub struct Decoding {
    rules: GenerationRules,
    /// Per crop, with the start token.
    histories: Vec<Vec<i64>>,
    /// Crops that go on, in order: the rows of the model's tensors.
    active: Vec<usize>,
    place: usize,
}

impl Decoding {
    /// Begins the captions of `crops` crops.
    pub fn new(rules: GenerationRules, crops: usize) -> Self {
        Self {
            rules,
            histories: vec![vec![rules.start_token]; crops],
            active: (0..crops).collect(),
            place: 0,
        }
    }

    /// Whether every caption has ended.
    pub const fn is_done(&self) -> bool {
        self.active.is_empty() || self.place == self.rules.max_new_tokens
    }

    /// The place of the next token, which is also how many each active row has.
    pub const fn place(&self) -> usize {
        self.place
    }

    /// The latest token of each active row: the model's next input.
    pub fn inputs(&self) -> Vec<i64> {
        let latest = |&crop: &usize| self.histories[crop].last().copied();
        self.active.iter().filter_map(latest).collect()
    }

    /// The next token of all active rows, if the rules leave no choice.
    pub const fn forced(&self) -> Option<i64> {
        self.rules.forced(self.place)
    }

    /// Whether the model is needed at all: a last token that is forced needs no logits, and nothing comes after it.
    pub const fn needs_model(&self) -> bool {
        self.place + 1 < self.rules.max_new_tokens || self.forced().is_none()
    }

    /// Active rows and the tokens that must not be chosen there.
    pub fn banned(&self) -> Vec<(usize, i64)> {
        let rows = self.active.iter().enumerate();
        rows.flat_map(|(row, &crop)| self.rules.banned(&self.histories[crop]).map(move |token| (row, token)))
            .collect()
    }

    /// Takes one token per active row. When captions have ended by it, the rows that go on, by their number before;
    /// `None` when all do.
    pub fn accept(&mut self, chosen: &[i64]) -> Option<Vec<i64>> {
        self.place += 1;
        let mut kept = Vec::with_capacity(self.active.len());
        let mut still = Vec::with_capacity(self.active.len());
        for (row, (&crop, &token)) in self.active.iter().zip(chosen).enumerate() {
            self.histories[crop].push(token);
            if token != self.rules.end_token {
                kept.push(row as i64);
                still.push(crop);
            }
        }
        let ended = kept.len() < self.active.len();
        self.active = still;
        ended.then_some(kept)
    }

    /// The tokens of every crop, in the crops' order, without the start token.
    pub fn into_tokens(self) -> Vec<Vec<i64>> {
        let mut histories = self.histories;
        for history in &mut histories {
            history.remove(0);
        }
        histories
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: GenerationRules = GenerationRules {
        start_token: 2,
        forced_first_token: Some(0),
        forced_last_token: Some(2),
        end_token: 2,
        no_repeat_ngram: 3,
        max_new_tokens: 20,
    };

    fn banned(history: &[i64]) -> Vec<i64> {
        RULES.banned(history).collect()
    }

    #[test]
    fn the_first_and_the_last_token_are_forced() {
        assert_eq!(RULES.forced(0), Some(0));
        assert!((1..19).all(|place| RULES.forced(place).is_none()));
        assert_eq!(RULES.forced(19), Some(2));
        let single = GenerationRules {
            max_new_tokens: 1,
            ..RULES
        };
        assert_eq!(single.forced(0), Some(2), "the end wins over the beginning");
        let free = GenerationRules {
            forced_first_token: None,
            forced_last_token: None,
            ..RULES
        };
        assert!((0..20).all(|place| free.forced(place).is_none()));
    }

    #[test]
    fn three_tokens_in_a_row_come_once() {
        // What Hugging Face's NoRepeatNGramLogitsProcessor(3) sets to -inf for these.
        assert_eq!(banned(&[2]), [0_i64; 0]);
        assert_eq!(banned(&[2, 0]), [0_i64; 0]);
        assert_eq!(banned(&[2, 0, 5]), [0_i64; 0]);
        assert_eq!(banned(&[5, 6, 7, 5, 6]), [7]);
        assert_eq!(banned(&[5, 6, 7, 5, 6, 8, 5, 6]), [7, 8]);
        assert_eq!(banned(&[4, 4, 4]), [4], "overlapping repeats count");
        assert_eq!(banned(&[2, 0, 9, 2, 0]), [9], "the start token is part of the history");
    }

    #[test]
    fn other_lengths_of_repeats() {
        let rules = |no_repeat_ngram| GenerationRules {
            no_repeat_ngram,
            ..RULES
        };
        let history = [2, 0, 5, 0];
        assert_eq!(rules(0).banned(&history).count(), 0);
        assert_eq!(rules(1).banned(&history).collect::<Vec<_>>(), history);
        assert_eq!(rules(2).banned(&history).collect::<Vec<_>>(), [5]);
        assert_eq!(rules(9).banned(&history).count(), 0);
    }

    #[test]
    fn rows_that_have_ended_are_dropped_and_keep_their_tokens() {
        let mut decoding = Decoding::new(RULES, 3);
        assert_eq!((decoding.forced(), decoding.inputs()), (Some(0), vec![2, 2, 2]));
        assert_eq!(decoding.accept(&[0, 0, 0]), None);
        assert_eq!(
            decoding.accept(&[7, 2, 8]),
            Some(vec![0, 2]),
            "the middle one has ended"
        );
        assert_eq!((decoding.place(), decoding.inputs()), (2, vec![7, 8]));
        assert_eq!(decoding.accept(&[2, 9]), Some(vec![1]));
        assert_eq!(decoding.accept(&[2]), Some(vec![]));
        assert!(decoding.is_done());
        assert_eq!(decoding.into_tokens(), [vec![0, 7, 2], vec![0, 2], vec![0, 8, 9, 2]]);
    }

    #[test]
    fn banned_tokens_are_told_by_active_row() {
        let mut decoding = Decoding::new(RULES, 2);
        for chosen in [[5, 5], [5, 2]] {
            decoding.accept(&chosen);
        }
        decoding.accept(&[5]);
        assert_eq!(decoding.banned(), [(0, 5)]);
    }

    #[test]
    fn the_last_forced_token_needs_no_model() {
        let rules = GenerationRules {
            max_new_tokens: 3,
            ..RULES
        };
        let mut decoding = Decoding::new(rules, 1);
        assert!(
            decoding.needs_model(),
            "the first token is forced, but what follows looks back at it"
        );
        decoding.accept(&[0]);
        assert!(decoding.needs_model());
        decoding.accept(&[7]);
        assert!(!decoding.needs_model() && !decoding.is_done());
        assert_eq!(decoding.forced(), Some(2));
        decoding.accept(&[2]);
        assert!(decoding.is_done());
        assert!(Decoding::new(RULES, 0).is_done());
    }
}
