//! Captions as CUDA graphs: one for each size of batch and prompt, from the crops' bytes to the last token.

use super::network::Network;
use crate::shim::{Graph, GraphPool, trim_memory};
use hawkeye_pipeline::{model::CaptionPrompt, parser::CAPTION_CROP};
use tch::{Kind, TchError, Tensor};

/// Batches are padded to one of these. Between 32 and 128 they lie closer, for a screen has about that many icons.
const SIZES: [usize; 14] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 100, 128, 192, 256];

/// The graphs of one captioner.
#[derive(Debug)]
pub(super) struct Graphs {
    pool: GraphPool,
    recorded: Vec<Recorded>,
}

#[derive(Debug)]
struct Recorded {
    // First, so that it goes before the tensors that it works on.
    graph: Graph,
    size: usize,
    prompt: CaptionPrompt,
    /// (size, 64, 64, 3) bytes.
    crops: Tensor,
    /// (size, most tokens).
    tokens: Tensor,
}

/// The smallest size that holds `rows`; `rows` itself when it is larger than all.
fn size_for(rows: usize) -> usize {
    SIZES.into_iter().find(|&size| size >= rows).unwrap_or(rows)
}

/// Every size that batches of at most `batch_size` crops are padded to, the largest first: what it leaves free of the shared
/// memory serves the smaller ones.
pub(super) fn sizes_up_to(batch_size: usize) -> impl Iterator<Item = usize> {
    let largest = size_for(batch_size);
    let smaller = SIZES.into_iter().rev().filter(move |&size| size < largest);
    std::iter::once(largest).chain(smaller)
}

impl Graphs {
    pub(super) const fn new(pool: GraphPool) -> Self {
        Self {
            pool,
            recorded: Vec::new(),
        }
    }

    /// The tokens of (B, 64, 64, 3) bytes on the host, as [`Network::unrolled`] gives them.
    pub(super) fn run(&mut self, network: &Network, bytes: &Tensor, prompt: CaptionPrompt) -> Result<Tensor, TchError> {
        let rows = bytes.size().first().copied().unwrap_or_default();
        let place = self.prepare(network, size_for(rows as usize), prompt)?;
        let entry = &mut self.recorded[place];
        // Rows beyond these keep what they had: every row is on its own.
        entry.crops.f_narrow(0, 0, rows)?.f_copy_(bytes)?;
        entry.graph.replay()?;
        entry.tokens.f_narrow(0, 0, rows)
    }

    /// The place of the graph for batches of `size` crops; it is recorded if it is not there yet.
    pub(super) fn prepare(&mut self, network: &Network, size: usize, prompt: CaptionPrompt) -> Result<usize, TchError> {
        let is_this = |entry: &Recorded| entry.size == size && entry.prompt == prompt;
        if let Some(place) = self.recorded.iter().position(is_this) {
            return Ok(place);
        }
        let pixels = i64::from(CAPTION_CROP);
        let crops = Tensor::f_zeros([size as i64, pixels, pixels, 3], (Kind::Uint8, network.device()))?;
        // Once as it is: kernels are loaded and workspaces allocated, which a recording must not do.
        drop(network.unrolled(&crops, prompt)?);
        // What that leaves is not used by a recording, which has memory of its own.
        trim_memory()?;
        let (graph, tokens) = Graph::record(self.pool, || network.unrolled(&crops, prompt))?;
        self.recorded.push(Recorded {
            graph,
            size,
            prompt,
            crops,
            tokens,
        });
        Ok(self.recorded.len() - 1)
    }

    /// Gives up the graphs of batches that are larger than `size` is padded to.
    pub(super) fn keep_up_to(&mut self, size: usize) {
        self.recorded.retain(|entry| entry.size <= size_for(size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_padded_little() {
        let padded = [1, 3, 9, 17, 100, 101, 300].map(size_for);
        assert_eq!(padded, [1, 4, 16, 24, 100, 128, 300]);
        assert_eq!(sizes_up_to(6).collect::<Vec<_>>(), [8, 4, 2, 1]);
        assert_eq!(sizes_up_to(300).next(), Some(300));
    }
}
