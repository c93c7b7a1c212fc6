//! What is made of the sources: by the build script, by the CUDA compiler, by a C++ compiler of the parameters' header; and
//! what comments in the kernels say of that.

mod abi;
mod build_script;
mod headers;
mod instructions;
mod ptx;
mod ptxas;
mod sass;
mod sass_hopper;
mod sass_products;
mod sass_stages;
