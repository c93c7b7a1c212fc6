//! What candle has its memory and streams from is cudarc's safe layer. A layer is called in such memory, on such streams, by the
//! code of `da-moe-candle` that lends them; candle itself links CUDA's libraries, which a machine without a GPU does not have.

extern crate cudarc;
#[path = "../../crates/da-moe-candle/src/cuda/borrow.rs"]
mod lent;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, SyncOnDrop};
use da_moe::cuda::{Copies, Cuda, DeviceMemory, Driver, GradientCopies, Kernels, Most};
use da_moe::{Buffer, DType, Inputs, Slice, SliceMut, TensorMut, TensorRef, bf16};
use da_moe_harness::bits::{assert_same_bits, same_memory};
use da_moe_harness::case::Case;
use da_moe_harness::data::Data;
use da_moe_harness::device::{Engine, OnDevice, rich};
use da_moe_harness::{Subject, judge};
use da_moe_reference::check::Outcome;
use lent::{Range, on};
use std::sync::Arc;

/// Rows of bf16 in the other library's memory, behind `before` elements that are not the layer's.
fn rows(stream: &Arc<CudaStream>, buffer: &Buffer, before: usize) -> CudaSlice<u16> {
    let Buffer::Bf16(rows) = buffer else { panic!("rows of bf16") };
    let rows = std::iter::repeat_n(0x7fff, before).chain(rows.iter().map(|value| value.to_bits()));
    stream.clone_htod(&rows.collect::<Vec<u16>>()).unwrap()
}

/// Lends elements until the second result is dropped, which borrows their slice.
fn lend<'s>(kernels: &Cuda, range: Range<'s>) -> (DeviceMemory<Driver>, SyncOnDrop<'s>) {
    // SAFETY: the slice outlives both results, and the stream that it was made ready for is the one that the layer is called
    // on.
    let memory = unsafe { kernels.borrow(DType::Bf16, range.address, range.count) };
    (memory.unwrap(), range.order)
}

/// Forward and backward with `x`, `y` and `dy` in the other library's memory and on its stream.
fn lent(kernels: &Cuda, stream: &Arc<CudaStream>, data: &Data, case: &Case) -> Outcome {
    const BEFORE: usize = 3;
    let copies = Copies::new(kernels);
    let (host, weights) = (data.inputs().unwrap(), copies.weights(&data.weights().unwrap()).unwrap());
    let inputs = copies.inputs(&host).unwrap();
    let shape = inputs.x.shape();
    let mut engine = Engine::new(kernels, data, case, 0).unwrap();
    let most = Most::of(&host, case.keep);
    engine.stream = on(kernels, stream, kernels.workspace_bytes(&data.config, most).unwrap()).unwrap();
    let mut own = data.gradients();
    let mut gradients = GradientCopies::like(kernels, &own.view_mut().unwrap()).unwrap();

    let (x, dy) = (rows(stream, &data.x, BEFORE), rows(stream, &data.dy, 0));
    let mut y = rows(stream, &data.x, 0);
    {
        let (x, _x_order) = lend(kernels, Range::read(&x, stream, BEFORE));
        let (dy, _dy_order) = lend(kernels, Range::read(&dy, stream, 0));
        let (mut y, _y_order) = lend(kernels, Range::write(&mut y, stream));
        let inputs = Inputs { x: TensorRef::new(Slice::from(&x), shape).unwrap(), ..inputs };
        let dy = TensorRef::new(Slice::from(&dy), shape).unwrap();
        let Engine { layer, stream, state, step, .. } = &mut engine;
        let y = TensorMut::new(SliceMut::from(&mut y), shape).unwrap();
        layer.forward(stream, &inputs, &weights, state, step, y).unwrap();
        engine.backward(&inputs, &weights, dy, &mut gradients.view_mut().unwrap()).unwrap();
    }
    // The other library's own copy, in its own order.
    let y: Vec<_> = stream.clone_dtoh(&y).unwrap().into_iter().map(bf16::from_bits).collect();
    engine.y = kernels.upload(&y).unwrap();
    let x = stream.clone_dtoh(&x).unwrap();
    assert!(x[..BEFORE].iter().all(|bits| *bits == 0x7fff), "what is not lent is left alone");
    let x: Vec<_> = x[BEFORE..].iter().map(|bits| bf16::from_bits(*bits)).collect();
    assert!(same_memory(&x.into(), &data.x), "what is lent for reading is not written");
    engine.outcome(data, Some(&gradients.view_mut().unwrap())).unwrap()
}

#[test]
fn memory_and_streams_of_candles_kind_are_lent() {
    let context = CudaContext::new(0).unwrap();
    let kernels = Kernels::new(Arc::new(Driver::open(0).unwrap()));
    let case = rich();
    let data = Data::new(&case);
    let expected = OnDevice(kernels.clone()).run(&data, &case).unwrap();
    // The legacy stream, each thread's own, which candle takes, and one made for the purpose.
    for stream in [context.default_stream(), context.per_thread_stream(), context.new_stream().unwrap()] {
        let outcome = lent(&kernels, &stream, &data, &case);
        judge(&data, &outcome).unwrap();
        assert_same_bits("lent", &expected, &outcome);
        // Not the whole context, in which other tests record.
        stream.synchronize().expect("no kernel failed");
    }
}
