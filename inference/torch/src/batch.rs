//! A batch that shrinks when the device's memory does not hold it.

use tch::TchError;

/// Whether libtorch says that memory was short, on a GPU or on the host (c10's allocators, cuBLAS, cuDNN): a smaller batch may fit.
pub(crate) fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
}

/// Runs all of `items` in batches of at most `size`, one answer each, in order. When memory runs out, `make_room` is called, the
/// batch is halved, for good, and tried again.
///
/// # Errors
/// What `run` says, out of memory only for a single item.
pub(crate) fn in_batches<S, T, U>(
    state: &mut S,
    items: &[T],
    size: &mut usize,
    mut run: impl FnMut(&mut S, &[T]) -> Result<Vec<U>, TchError>,
    mut make_room: impl FnMut(&mut S, usize),
) -> Result<Vec<U>, TchError> {
    let mut answers = Vec::with_capacity(items.len());
    let mut rest = items;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rest.len().min((*size).max(1)));
        match run(state, batch) {
            Ok(found) => {
                answers.extend(found);
                rest = later;
            }
            Err(error) if batch.len() > 1 && is_out_of_memory(&error) => {
                *size = batch.len().div_ceil(2);
                make_room(state, *size);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> TchError {
        TchError::Torch("CUDA out of memory. Tried to allocate 2.00 GiB.".to_owned())
    }

    #[test]
    fn the_batch_shrinks_to_what_fits_and_every_item_is_answered_once() {
        let (mut size, mut tried) = (16, Vec::new());
        let items: Vec<u32> = (0..21).collect();
        let run = |tried: &mut Vec<usize>, batch: &[u32]| {
            tried.push(batch.len());
            if batch.len() > 5 {
                Err(full())
            } else {
                Ok(batch.to_vec())
            }
        };
        let answers = in_batches(&mut tried, &items, &mut size, run, |tried, size| {
            tried.push(100 + size);
        });
        assert_eq!(answers.unwrap(), items);
        assert_eq!(
            (size, tried.as_slice()),
            (4, [16, 108, 8, 104, 4, 4, 4, 4, 4, 1].as_slice())
        );
    }

    #[test]
    fn other_errors_and_a_single_item_that_does_not_fit_are_the_callers() {
        for (error, size) in [(full(), 1), (TchError::Torch("illegal address".to_owned()), 8)] {
            let (text, mut size, mut error) = (error.to_string(), size, Some(error));
            let run = |error: &mut Option<TchError>, _: &[u32]| Err::<Vec<u32>, _>(error.take().unwrap());
            let answer = in_batches(&mut error, &[1, 2, 3], &mut size, run, |_, _| {
                panic!("there is nothing to shrink")
            });
            assert_eq!(answer.unwrap_err().to_string(), text);
        }
    }
}
