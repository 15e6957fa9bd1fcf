//! The sizes of batches that have a CUDA graph.

/// Batches are padded to one of these. Between 32 and 128 they lie closer, for a screen has about that many icons.
const SIZES: [usize; 14] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 100, 128, 192, 256];

/// The smallest size that holds `rows`; `rows` itself when it is larger than all.
pub(super) fn size_for(rows: usize) -> usize {
    SIZES.into_iter().find(|&size| size >= rows).unwrap_or(rows)
}

/// Every size that batches of at most `batch_size` crops are padded to, the largest first: what it leaves free of the shared
/// memory serves the smaller ones.
pub(super) fn sizes_up_to(batch_size: usize) -> impl Iterator<Item = usize> {
    let largest = size_for(batch_size);
    let smaller = SIZES.into_iter().rev().filter(move |&size| size < largest);
    std::iter::once(largest).chain(smaller)
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
