//! GIF: the first frame, placed on its canvas as Pillow places it.
//!
//! Read by `gif` itself: `image` gives colours only, and which index is transparent, what surrounds a frame and what
//! an index past the palette means can be told from indices alone.

use std::io::ErrorKind;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{Canvas, Fault};

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.allow_unknown_blocks(true);
    // The size is held against the caps before the frame is read; metadata is no longer than the file.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(fault)?;
    canvas.declare(decoder.width().into(), decoder.height().into())?;
    let frame = decoder.next_frame_info().map_err(fault)?.ok_or_else(|| Fault::damaged("no frame in it"))?;
    let (x0, y0, w, h) = (usize::from(frame.left), usize::from(frame.top), usize::from(frame.width), usize::from(frame.height));
    let around = usize::from(frame.transparent.unwrap_or(0));
    if w == 0 || h == 0 {
        return Err(Fault::damaged("a first frame of no pixels"));
    }
    // A frame that reaches out of the canvas widens it.
    canvas.declare(canvas.width.max(x0 + w) as u32, canvas.height.max(y0 + h) as u32)?;
    let palette = colours(decoder.palette().map_err(fault)?);
    let mut indices = vec![0; w * h];
    decoder.read_into_buffer(&mut indices).map_err(fault)?;

    canvas.allocate();
    if (w, h) != (canvas.width, canvas.height) && palette[around] != [0; 3] {
        canvas.rgb.as_chunks_mut::<3>().0.fill(palette[around]);
    }
    for (y, indices) in indices.chunks_exact(w).enumerate() {
        let row = &mut canvas.rgb.as_chunks_mut::<3>().0[(y0 + y) * canvas.width + x0..];
        for (rgb, &index) in row.iter_mut().zip(indices) {
            *rgb = palette[usize::from(index)];
        }
    }
    Ok(())
}

/// The colour of every index: those past the palette are black, but where each entry is the grey of its own index, the
/// palette is dropped and they are greys as well.
fn colours(palette: &[u8]) -> [[u8; 3]; 256] {
    let greys: [[u8; 3]; 256] = std::array::from_fn(|i| [i as u8; 3]);
    let stored = palette.as_chunks::<3>().0;
    if greys.starts_with(stored) {
        return greys;
    }
    std::array::from_fn(|i| stored.get(i).copied().unwrap_or_default())
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::UnexpectedEof => Fault::Truncated,
        DecodingError::Io(e) if e.kind() == ErrorKind::UnexpectedEof => Fault::Truncated,
        other => Fault::Damaged(other.to_string()),
    }
}
