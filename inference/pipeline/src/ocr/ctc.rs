//! Greedy CTC decoding: the best class of every step, repeats and blanks removed.

/// A step that emits a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emission {
    /// Index of the step.
    pub step: usize,
    /// Class, never 0 (the blank).
    pub class: usize,
}

/// The characters of a recogniser, in class order without the blank.
#[derive(Debug, Clone)]
pub struct Alphabet(Vec<String>);

impl Alphabet {
    /// From a file with one character a line. The last line end is optional; a line may be a single space.
    pub fn from_lines(text: &str) -> Self {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Self(
            text.split('\n')
                .map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned())
                .collect(),
        )
    }

    /// Classes that a recogniser of this alphabet has, the blank included.
    pub fn classes(&self) -> usize {
        self.0.len() + 1
    }

    /// The character of a class; empty for the blank and for classes that do not exist.
    pub fn character(&self, class: usize) -> &str {
        class
            .checked_sub(1)
            .and_then(|index| self.0.get(index))
            .map_or("", String::as_str)
    }
}

/// The steps of `best` (one class per step) that emit a character: not blank and not the class of the step before.
pub fn emissions(best: &[i64]) -> Vec<Emission> {
    let mut previous = 0;
    let mut emitted = Vec::new();
    for (step, &class) in best.iter().enumerate() {
        if class > 0 && class != previous {
            emitted.push(Emission {
                step,
                class: class as usize,
            });
        }
        previous = class;
    }
    emitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_collapse_unless_a_blank_parts_them() {
        let alphabet = Alphabet::from_lines("a\nb\n \n");
        assert_eq!(alphabet.classes(), 4);
        let text: String = emissions(&[0, 1, 1, 0, 1, 2, 2, 3, 0, 0, 2])
            .iter()
            .map(|emission| alphabet.character(emission.class))
            .collect();
        assert_eq!(text, "aab b");
        assert_eq!(alphabet.character(0), "");
        assert_eq!(alphabet.character(9), "");
        assert_eq!(emissions(&[1, 1, 2])[1], Emission { step: 2, class: 2 });
    }
}
