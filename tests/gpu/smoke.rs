//! What everything else rests on: memory that comes back as it was written, and streams that wait for one another.

#![allow(unsafe_code, reason = "addresses of the test's own memory")]

use da_moe::DType;
use da_moe::cuda::{Device, Kernels, Launch};
use da_moe_harness::device::on_every_device;
use std::sync::Arc;

on_every_device! {
    memory: check_memory;
    order: check_order;
}

fn check_memory<D: Device>(device: &Arc<D>) {
    let own = device.own_stream();
    // Smaller and larger than what is handed out at once.
    for len in [6, 1 << 20, (3 << 20) + 5] {
        let mut bytes: Vec<u8> = (0..len).map(|place| (place * 31 % 251) as u8).collect();
        let [from, to] = ["from", "to"].map(|name| device.alloc(name, len).expect("memory"));
        let mut found = vec![0; len];
        // SAFETY: as many bytes of this device, given back once.
        unsafe {
            device.upload(own, from, &bytes).expect("a copy to the device");
            device.fill(own, from + 2, 9, len - 4).expect("a fill");
            device.copy(own, from, to, len).expect("a copy on the device");
            device.download(own, to, &mut found).expect("a copy from the device");
            device.free(from);
            device.free(to);
        }
        bytes[2..len - 2].fill(9);
        assert_eq!(found, bytes);
    }
    // SAFETY: there is no such kernel, so nothing runs.
    let refused =
        unsafe { device.launch(own, &Launch { kernel: "none", grid: [1; 3], threads: 1, shared: 0, cluster: 1 }, &[]) };
    assert!(refused.is_err());
    device.synchronize_all().expect("nothing failed");
}

/// Without waiting, the second stream would copy while the first still fills.
fn check_order<D: Device>(device: &Arc<D>) {
    const BYTES: usize = 8 << 20;
    let kernels = Kernels::new(device.clone());
    let [first, second] = [(); 2].map(|()| kernels.stream(0).expect("a stream"));
    let [from, to] = [(); 2].map(|()| kernels.zeros(DType::U8, BYTES).expect("memory"));
    for value in 1..=16 {
        // SAFETY: the stream and the memory are this device's.
        unsafe { device.fill(first.handle(), from.address(), value, BYTES) }.expect("a fill");
    }
    second.wait_for(&first).expect("an event");
    // SAFETY: as above; both have as many bytes.
    unsafe { device.copy(second.handle(), from.address(), to.address(), BYTES) }.expect("a copy");
    let found = second.read(&to).expect("a copy from the device");
    assert!(found.as_slice::<u8>().expect("bytes").iter().all(|byte| *byte == 16));
}
