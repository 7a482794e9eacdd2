//! Where the experts of a mixture come from. The decoder asks for those that a chunk of rows needs and never knows
//! whether they were there already; what it computes does not depend on the order in which they come.

use sphinx_targets::{Mlp, Target};

use crate::Result;

mod resident;

pub use resident::Resident;

/// The experts of all layers.
pub trait Experts<T: Target> {
    /// Calls `work` once for each of `ids` (ascending, no repetition) in `layer`, in an order of its own.
    ///
    /// # Errors
    /// What `work` returns first; when there is no such layer or expert, or it cannot be had.
    fn visit(&self, layer: usize, ids: &[u32], work: &mut dyn FnMut(u32, &Mlp<T>) -> Result<()>) -> Result<()>;
}
