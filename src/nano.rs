//! SPHINX-Nano, which the binary carries: a checkpoint in the public layout, and the first pictures and questions of its test set.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::failure::Failure;

/// The checkpoint's files.
const CHECKPOINT: [(&str, &[u8]); 4] = [
    ("consolidated.00-of-01.model.pth", include_bytes!("../nano/dense/consolidated.00-of-01.model.pth")),
    ("config.json", include_bytes!("../nano/dense/config.json")),
    ("meta.json", include_bytes!("../nano/dense/meta.json")),
    ("tokenizer.model", include_bytes!("../nano/dense/tokenizer.model")),
];

/// The first pictures of the test set, in its order.
const PICTURES: [(&str, &[u8]); 4] = [
    ("test/000.png", include_bytes!("../nano/test/000.png")),
    ("test/001.png", include_bytes!("../nano/test/001.png")),
    ("test/002.png", include_bytes!("../nano/test/002.png")),
    ("test/003.png", include_bytes!("../nano/test/003.png")),
];

/// The whole test set's questions.
const QUESTIONS: &str = include_str!("../nano/test.jsonl");

/// A question of the test set.
#[derive(Debug, Deserialize)]
pub struct Question {
    /// The picture it is about.
    pub image: String,
    /// What is asked.
    pub question: String,
    /// What would be right.
    pub answer: String,
}

/// A picture of the test set, and the questions about it.
#[derive(Debug)]
pub struct Scene {
    /// Its name in the set.
    pub name: &'static str,
    /// The PNG file.
    pub png: &'static [u8],
    /// In the set's order.
    pub questions: Vec<Question>,
}

/// Writes the checkpoint's files into `folder`, and says how many bytes they are.
pub fn unpack(folder: &Path) -> Result<u64> {
    std::fs::create_dir(folder).map_err(|e| Failure::io(folder, &e))?;
    for (name, bytes) in CHECKPOINT {
        let file = folder.join(name);
        std::fs::write(&file, bytes).map_err(|e| Failure::io(&file, &e))?;
    }
    Ok(CHECKPOINT.iter().map(|(_, bytes)| bytes.len() as u64).sum())
}

/// The first pictures of the test set and their questions.
pub fn scenes() -> Result<Vec<Scene>> {
    let questions = QUESTIONS.lines().map(serde_json::from_str).collect::<Result<Vec<Question>, _>>()?;
    let mut scenes: Vec<Scene> = PICTURES.iter().map(|&(name, png)| Scene { name, png, questions: Vec::new() }).collect();
    for question in questions {
        if let Some(scene) = scenes.iter_mut().find(|s| s.name == question.image) {
            scene.questions.push(question);
        }
    }
    Ok(scenes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenes_are_the_first_of_the_test_set() {
        let scenes = scenes().unwrap();
        let first: Question = serde_json::from_str(QUESTIONS.lines().next().unwrap()).unwrap();
        assert_eq!((scenes[0].name, &scenes[0].questions[0].question), (first.image.as_str(), &first.question));
        assert!(scenes.iter().all(|s| s.questions.len() == 5 && s.png.starts_with(b"\x89PNG")));
        assert_eq!(QUESTIONS.lines().count(), 500);
    }
}
