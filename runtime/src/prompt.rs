//! What is put around a question.

use crate::{Result, RuntimeError};

/// The system text of the released models.
pub const SYSTEM: &str = "A chat between a curious human and an artificial intelligence assistant. \
                          The assistant gives helpful, detailed, and polite answers to the human's questions.";

/// A built-in chat template. Templates from files are never run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Template {
    /// `### Human: … ### Assistant: …`, the one that SPHINX was trained with.
    #[default]
    V1,
}

/// A question and what was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The user's message.
    pub question: String,
    /// The model's; `None` for the reply that is to be generated.
    pub answer: Option<String>,
}

impl Template {
    /// Names of all templates.
    pub const NAMES: &[&str] = &["v1"];

    /// The template of that name.
    pub fn named(name: &str) -> Option<Template> {
        match name {
            "v1" => Some(Template::V1),
            _ => None,
        }
    }

    /// What ends a reply.
    pub fn stop(self) -> &'static str {
        match self {
            Template::V1 => "\n###",
        }
    }

    /// The whole prompt: `system` (the released text unless given), then `turns`. Messages are inserted as they are.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] when there is no turn, or one before the last has no answer.
    pub fn render(self, system: Option<&str>, turns: &[Turn]) -> Result<String> {
        let Some((_, earlier)) = turns.split_last() else {
            return Err(RuntimeError::Usage("a conversation needs at least one message".into()));
        };
        if earlier.iter().any(|turn| turn.answer.is_none()) {
            return Err(RuntimeError::Usage("only the last message of a conversation may wait for its answer".into()));
        }
        let mut text = format!("{}\n\n###", system.unwrap_or(SYSTEM));
        for turn in turns {
            text.extend([" Human: ", &turn.question, "\n### Assistant:"]);
            if let Some(answer) = &turn.answer {
                text.extend([" ", answer, "\n###"]);
            }
        }
        Ok(text)
    }

    /// The prompt of a single question.
    pub fn question(self, system: Option<&str>, question: &str) -> String {
        let turn = Turn { question: question.into(), answer: None };
        self.render(system, &[turn]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(question: &str, answer: Option<&str>) -> Turn {
        Turn { question: question.into(), answer: answer.map(Into::into) }
    }

    #[test]
    fn one_and_two_turns() {
        assert_eq!(
            Template::V1.question(None, "What's in the image?"),
            format!("{SYSTEM}\n\n### Human: What's in the image?\n### Assistant:")
        );
        let text = Template::V1.render(Some("S"), &[turn("Q1", Some("A1")), turn("Q2", None)]).unwrap();
        assert_eq!(text, "S\n\n### Human: Q1\n### Assistant: A1\n### Human: Q2\n### Assistant:");
    }

    #[test]
    fn an_empty_message_is_a_message() {
        let text = Template::V1.render(Some(""), &[turn("", Some("")), turn(" x ", None)]).unwrap();
        assert_eq!(text, "\n\n### Human: \n### Assistant: \n### Human:  x \n### Assistant:");
    }

    #[test]
    fn only_the_last_may_be_open() {
        assert!(Template::V1.render(None, &[turn("a", None), turn("b", None)]).is_err());
        assert!(Template::V1.render(None, &[]).is_err());
    }

    #[test]
    fn names_lead_to_templates() {
        assert!(Template::NAMES.iter().all(|name| Template::named(name).is_some()));
        assert_eq!(Template::named("vicuna"), None);
    }
}
