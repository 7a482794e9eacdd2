//! How answers are judged and models compared: matching, intervals, divergence.
//!
//! An answer that cannot be read is wrong and counted as such; nothing is ever guessed for it.

use std::collections::BTreeMap;

/// What makes an answer right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scoring {
    /// The same text, white space at either end aside.
    Exact,
    /// The letter of one of the choices, or the choice itself.
    Choice,
    /// Yes or no, the reply's first word.
    YesNo,
    /// The first number of the reply, as far from the answer as this at most.
    Number(f64),
    /// No reply: the choice that the model finds likeliest per token.
    Likelihood,
}

impl Scoring {
    /// The name that flags and records use.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Exact => "exact",
            Scoring::Choice => "choice",
            Scoring::YesNo => "yes-no",
            Scoring::Number(_) => "number",
            Scoring::Likelihood => "likelihood",
        }
    }

    /// What `reply` says, and whether that is `answer`. For [`Likelihood`](Scoring::Likelihood) the reply is a choice's text.
    pub fn judge(self, reply: &str, answer: &str, choices: &[String]) -> Verdict {
        let (said, meant) = match self {
            Scoring::Exact => (Some(reply.trim().to_owned()), Some(answer.trim().to_owned())),
            Scoring::Choice => (choice(reply, choices), choice(answer, choices)),
            Scoring::Likelihood => (Some(reply.trim().to_owned()), choice(answer, choices).and_then(|l| chosen(&l, choices))),
            Scoring::YesNo => (yes_no(reply), yes_no(answer)),
            Scoring::Number(far) => {
                let (said, meant) = (number(reply), number(answer));
                let right = matches!((said, meant), (Some(a), Some(b)) if (a - b).abs() <= far);
                return Verdict { parsed: said.map(|n| n.to_string()), right };
            }
        };
        let right = said.is_some() && said == meant;
        Verdict { parsed: said, right }
    }

    /// Whether `answer` is one that some reply could meet.
    pub fn can_be_met(self, answer: &str, choices: &[String]) -> bool {
        match self {
            Scoring::Exact => true,
            Scoring::Choice | Scoring::Likelihood => choice(answer, choices).is_some(),
            Scoring::YesNo => yes_no(answer).is_some(),
            Scoring::Number(_) => number(answer).is_some(),
        }
    }
}

/// What a reply was read as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The reply, read; `None` when it cannot be.
    pub parsed: Option<String>,
    /// Whether it is the answer.
    pub right: bool,
}

/// The letter of choice `i`.
pub fn letter(i: usize) -> char {
    char::from(b'A' + (i % 26) as u8)
}

/// The letter that `text` names, as `B`, `(b)`, `B.`, `B: …`, or by saying the choice itself.
fn choice(text: &str, choices: &[String]) -> Option<String> {
    let text = text.trim();
    if let Some(i) = choices.iter().position(|c| c.trim().eq_ignore_ascii_case(text.trim_end_matches('.'))) {
        return Some(letter(i).into());
    }
    let bare = text.trim_start_matches('(');
    let first = bare.chars().next()?.to_ascii_uppercase();
    let ends = bare.chars().nth(1).is_none_or(|c| !c.is_alphanumeric() && c != '\'');
    (0..choices.len()).map(letter).find(|&l| ends && l == first).map(String::from)
}

/// The text of the choice with that letter.
fn chosen(of: &str, choices: &[String]) -> Option<String> {
    choices.iter().enumerate().find(|(i, _)| of.starts_with(letter(*i))).map(|(_, c)| c.trim().to_owned())
}

fn yes_no(text: &str) -> Option<String> {
    let word: String = text.trim().chars().take_while(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect();
    matches!(word.as_str(), "yes" | "no").then_some(word)
}

/// The first number in `text`; a comma between digits of a thousand is passed over.
fn number(text: &str) -> Option<f64> {
    let begins = text.find(|c: char| c.is_ascii_digit())?;
    let signed = text[..begins].ends_with('-');
    let point = text[..begins].ends_with('.');
    let digits: String =
        text[begins..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ',')).filter(|&c| c != ',').collect();
    let digits = digits.trim_end_matches('.');
    let signed = signed || (point && text[..begins - 1].ends_with('-'));
    let value: f64 = format!("{}{digits}", if point { "0." } else { "" }).parse().ok()?;
    Some(if signed { -value } else { value })
}

/// Right answers among answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many are right.
    pub right: usize,
    /// How many there are.
    pub total: usize,
    /// How many could not be read.
    pub unread: usize,
}

impl Tally {
    /// Counts an answer.
    pub fn add(&mut self, right: bool, read: bool) {
        self.right += usize::from(right);
        self.total += 1;
        self.unread += usize::from(!read);
    }

    /// Share of right ones; `None` of none.
    pub fn accuracy(&self) -> Option<f64> {
        (self.total > 0).then(|| self.right as f64 / self.total as f64)
    }

    /// Wilson's 95 % interval of the share; `None` of none.
    pub fn interval(&self) -> Option<(f64, f64)> {
        const Z: f64 = 1.959_963_984_540_054;
        let (p, n) = (self.accuracy()?, self.total as f64);
        let (middle, spread) = (p + Z * Z / (2.0 * n), Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt());
        let whole = 1.0 + Z * Z / n;
        Some((((middle - spread) / whole).max(0.0), ((middle + spread) / whole).min(1.0)))
    }
}

/// Tallies of all answers and of groups of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// All answers.
    pub all: Tally,
    /// By a field of the rows, and what stands in it.
    pub groups: BTreeMap<String, BTreeMap<String, Tally>>,
}

impl Tallies {
    /// Counts an answer that belongs to `groups`, pairs of a field and what stands in it.
    pub fn add<'a>(&mut self, right: bool, read: bool, groups: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.all.add(right, read);
        for (field, value) in groups {
            self.groups.entry(field.into()).or_default().entry(value.into()).or_default().add(right, read);
        }
    }
}

/// How far a model's next-token distributions are from a reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Σ over positions of KL(reference ‖ model), in nats.
    pub sum: f64,
    /// Positions where both find the same token likeliest.
    pub agreed: usize,
    /// How many positions.
    pub positions: usize,
}

impl Divergence {
    /// Adds positions: log-probabilities `[positions, vocabulary]` of the reference and of the model.
    pub fn add(&mut self, reference: &[f32], model: &[f32], vocabulary: usize) {
        for (p, q) in reference.chunks_exact(vocabulary.max(1)).zip(model.chunks_exact(vocabulary.max(1))) {
            // Rounding may leave a sum just below nothing, which no divergence is.
            let kl: f64 = p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum();
            self.sum += kl.max(0.0);
            self.agreed += usize::from(largest(p) == largest(q));
            self.positions += 1;
        }
    }

    /// Adds another's positions.
    pub fn join(&mut self, other: Divergence) {
        *self = Divergence { sum: self.sum + other.sum, agreed: self.agreed + other.agreed, positions: self.positions + other.positions };
    }

    /// Mean divergence per position, in nats.
    pub fn mean(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.sum / self.positions as f64)
    }

    /// Share of positions with the same likeliest token.
    pub fn agreement(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.agreed as f64 / self.positions as f64)
    }
}

/// The place of the largest number, the first of equals.
fn largest(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best })
}

/// Logits to log-probabilities in place, `[rows, vocabulary]`.
pub fn log_softmax(logits: &mut [f32], vocabulary: usize) {
    for row in logits.chunks_exact_mut(vocabulary.max(1)) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&v| f64::from(v - most).exp()).sum();
        let log = f64::from(most) + sum.ln();
        row.iter_mut().for_each(|v| *v = (f64::from(*v) - log) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(all: &[&str]) -> Vec<String> {
        all.iter().map(|&c| c.into()).collect()
    }

    #[test]
    fn replies_are_read_as_the_rule_says() {
        let colours = choices(&["red", "blue", "An apple"]);
        for (scoring, reply, answer, parsed, right) in [
            (Scoring::Exact, " red\n", "red", Some("red"), true),
            (Scoring::Exact, "Red", "red", Some("Red"), false),
            (Scoring::Choice, "B", "B", Some("B"), true),
            (Scoring::Choice, "(b) blue", "blue", Some("B"), true),
            (Scoring::Choice, "blue.", "B", Some("B"), true),
            (Scoring::Choice, "An apple", "C", Some("C"), true),
            (Scoring::Choice, "A. red", "C", Some("A"), false),
            (Scoring::Choice, "Because", "B", None, false),
            (Scoring::Choice, "D", "D", None, false),
            (Scoring::Choice, "", "A", None, false),
            (Scoring::YesNo, "Yes, it is.", "yes", Some("yes"), true),
            (Scoring::YesNo, "No", "yes", Some("no"), false),
            (Scoring::YesNo, "Nothing", "no", None, false),
            (Scoring::Number(0.0), "There are 3.", "3", Some("3"), true),
            (Scoring::Number(0.05), "about -1,203.52 m", "-1203.5", Some("-1203.52"), true),
            (Scoring::Number(0.0), ".5", "0.5", Some("0.5"), true),
            (Scoring::Number(0.01), "3.2", "3", Some("3.2"), false),
            (Scoring::Number(9.0), "many", "3", None, false),
            (Scoring::Likelihood, "blue", "B", Some("blue"), true),
            (Scoring::Likelihood, "red", "blue", Some("red"), false),
        ] {
            let verdict = scoring.judge(reply, answer, &colours);
            assert_eq!((verdict.parsed.as_deref(), verdict.right), (parsed, right), "{scoring:?} {reply:?}");
        }
        assert!(Scoring::Choice.can_be_met("A", &colours) && !Scoring::Choice.can_be_met("D", &colours));
        assert!(!Scoring::YesNo.can_be_met("red", &[]) && !Scoring::Number(0.0).can_be_met("red", &[]));
    }

    #[test]
    fn intervals_are_wilsons() {
        // Of 10 trials with 8 right: 0.490 to 0.943, as every table of it says.
        let (lo, hi) = Tally { right: 8, total: 10, unread: 0 }.interval().unwrap();
        assert!((lo - 0.4901).abs() < 1e-4 && (hi - 0.9433).abs() < 1e-4, "{lo} {hi}");
        let (lo, hi) = Tally { right: 5, total: 5, unread: 0 }.interval().unwrap();
        assert!((lo - 0.5655).abs() < 1e-4 && hi == 1.0, "{lo} {hi}");
        assert_eq!(Tally::default().interval(), None);
        assert_eq!(Tally::default().accuracy(), None);
    }

    #[test]
    fn groups_add_up() {
        let mut t = Tallies::default();
        t.add(true, true, [("category", "colour"), ("language", "en")]);
        t.add(false, false, [("category", "colour"), ("language", "de")]);
        t.add(true, true, [("category", "count")]);
        assert_eq!(t.all, Tally { right: 2, total: 3, unread: 1 });
        assert_eq!(t.groups["category"]["colour"], Tally { right: 1, total: 2, unread: 1 });
        assert_eq!(t.groups["language"]["de"], Tally { right: 0, total: 1, unread: 1 });
    }

    #[test]
    fn divergence_of_known_distributions() {
        // p = (1/2, 1/2), q = (1/4, 3/4): KL = ½ ln 2 + ½ ln ⅔. And p against itself.
        let mut p = [0.0, 0.0, 5.0, 5.0];
        let mut q = [0.0, 3f32.ln(), 5.0, 5.0];
        log_softmax(&mut p, 2);
        log_softmax(&mut q, 2);
        let mut d = Divergence::default();
        d.add(&p, &q, 2);
        let expected = 0.5 * 2f64.ln() + 0.5 * (2f64 / 3.0).ln();
        assert!((d.sum - expected).abs() < 1e-7, "{}", d.sum);
        assert_eq!((d.agreed, d.positions), (1, 2));
        assert_eq!((d.mean(), d.agreement()), (Some(d.sum / 2.0), Some(0.5)));
        // Far apart logits neither overflow nor lose the small ones.
        let mut far = [1000.0, 0.0, -1000.0];
        log_softmax(&mut far, 3);
        assert_eq!(far, [0.0, -1000.0, -2000.0]);
    }
}
