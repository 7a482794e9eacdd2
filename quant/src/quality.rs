//! Placeholder head; replaced.
