//! Images as nvcc writes them, with no more in them than is read.

/// What machine code says of a kernel of `kernels/libcuda.cu`.
#[derive(Clone)]
pub struct Kernel {
    pub name: &'static str,
    pub registers: u32,
    pub shared: u32,
    pub local: u32,
    pub most_threads: Option<u32>,
    /// Blocks of a cluster along x, y and z; zeros: whatever the launch says.
    pub cluster: Option<[u32; 3]>,
    pub parameters: Vec<u32>,
}

pub fn kernel(name: &'static str, parameters: &[u32]) -> Kernel {
    let parameters = parameters.into();
    Kernel { name, registers: 20, shared: 0, local: 0, most_threads: None, cluster: None, parameters }
}

/// The one that is right.
pub fn sum() -> Kernel {
    kernel("sum", &[32])
}

/// Bytes at an address that words can be read from.
#[derive(Clone)]
pub struct Image(Vec<u64>);

impl Image {
    pub fn new(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks(8)
                .map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
                .collect(),
        )
    }

    pub fn start(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

/// Architectures below this one do not count shared memory that the driver keeps.
const COUNTS_RESERVED: u32 = 90;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A record of a section `.nv.info`.
fn record(attribute: u8, value: &[u32]) -> Vec<u8> {
    let bytes = u8::try_from(4 * value.len()).expect("a short record");
    [vec![4, attribute, bytes, 0], words(value)].concat()
}

/// An ELF file of machine code without the code.
pub fn cubin(kernels: &[Kernel], architecture: u32) -> Vec<u8> {
    const NOBITS: u32 = 8;
    let mut sections: Vec<(String, u32, Vec<u8>, u64)> = Vec::new();
    let mut section = |name: String, kind: u32, bytes: Vec<u8>| {
        let size = bytes.len() as u64;
        sections.push((name, kind, bytes, size));
    };
    section(String::new(), 0, Vec::new());
    let (mut names, mut symbols, mut facts) = (vec![0], vec![0; 24], Vec::new());
    for (i, kernel) in (1..).zip(kernels) {
        symbols.extend(words(&[names.len() as u32, 0, 0, 0, 0, 0]));
        names.extend(kernel.name.bytes().chain([0]));
        facts.extend([record(0x2f, &[i, kernel.registers]), record(0x11, &[i, kernel.local])].concat());
    }
    section(".strtab".into(), 3, names);
    section(".symtab".into(), 2, symbols);
    section(".nv.info".into(), 0x7000_0000, facts);
    for kernel in kernels {
        let Kernel { name, most_threads, cluster, .. } = kernel;
        let mut offset = 0;
        let mut own: Vec<u8> = most_threads.iter().flat_map(|&most| record(0x05, &[most, 1, 1])).collect();
        if let Some(blocks) = cluster {
            own.extend([1, 0x3e, 0, 0]);
            own.extend(blocks.iter().any(|&blocks| blocks > 0).then(|| record(0x3d, blocks)).into_iter().flatten());
        }
        for (i, &bytes) in (0..).zip(&kernel.parameters) {
            own.extend(record(0x17, &[0, offset << 16 | i, bytes << 18]));
            offset += bytes;
        }
        section(format!(".nv.info.{name}"), 0x7000_0000, own);
        section(format!(".text.{name}"), 1, vec![0; 16]);
        let reserved = if architecture >= COUNTS_RESERVED { 1024 } else { 0 };
        section(format!(".nv.shared.{name}"), NOBITS, vec![0; (kernel.shared + reserved) as usize]);
    }
    let texts: Vec<u8> = sections.iter().flat_map(|(name, ..)| name.bytes().chain([0])).collect();
    let size = (texts.len() + ".shstrtab".len() + 1) as u64;
    sections.push((".shstrtab".into(), 3, [texts, b".shstrtab\0".to_vec()].concat(), size));

    let (mut body, mut headers, mut name_at) = (vec![0; 64], Vec::new(), 0_u32);
    for (name, kind, bytes, size) in &sections {
        headers.extend(words(&[name_at, *kind]));
        // Flags, address, place, size; the names of symbols are in section 1; alignment, size of an entry.
        let link = if *kind == 2 { 1 } else { 0 };
        for value in [0, 0, body.len() as u64, *size, link, 1, 0] {
            headers.extend(value.to_le_bytes());
        }
        name_at += name.len() as u32 + 1;
        if *kind != NOBITS {
            body.extend(bytes);
        }
    }
    let start = (body.len() as u64).to_le_bytes();
    body[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0x41]);
    body[40..48].copy_from_slice(&start);
    body[48..52].copy_from_slice(&(architecture << 8).to_le_bytes());
    let count = sections.len() as u16;
    body[60..62].copy_from_slice(&count.to_le_bytes());
    body[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    [body, headers].concat()
}

/// Code for one architecture in a fatbin.
pub enum Code {
    Machine(Vec<u8>),
    /// For this architecture alone, as that of sm_90a is.
    MachineOfOne(Vec<u8>),
    Ptx,
}

/// A fatbin of these entries, each with its architecture.
pub fn bundle(entries: &[(Code, u32)]) -> Image {
    let mut body = Vec::new();
    for (code, architecture) in entries {
        let (kind, flags, payload): (u32, u32, &[u8]) = match code {
            Code::Machine(bytes) => (2, 0x11, bytes),
            Code::MachineOfOne(bytes) => (2, 0x10_0011, bytes),
            Code::Ptx => (1, 0x8011, b"compressed"),
        };
        let padded = payload.len().div_ceil(8) * 8;
        let version = 0x101 << 16;
        body.extend(words(&[kind | version, 64, padded as u32, 0, 0, 0, 0x1_0008, *architecture]));
        body.extend(words(&[0, 0, flags, 0, 0, 0, 0, 0]));
        body.extend(payload);
        body.resize(body.len() + padded - payload.len(), 0);
    }
    let header = words(&[0xba55_ed50, 0x10_0001, body.len() as u32, 0]);
    Image::new(&[header, body].concat())
}

/// A fatbin with machine code for one architecture.
pub fn fatbin(kernels: &[Kernel], architecture: u32) -> Image {
    bundle(&[(Code::Machine(cubin(kernels, architecture)), architecture)])
}
