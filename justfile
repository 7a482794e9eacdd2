# What CI runs: formatting, lints, tests, documentation, all without warnings.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Every SIMD kernel this CPU has against the portable one.
parity:
    cargo test -p sphinx-targets parity

# The model, stage by stage, against recorded activations.
golden:
    cargo test --test golden

# Kernel benches, each rate beside the machine's limit: `just bench gemm Q4_K`. Others: limits, decode, kernels.
bench NAME *ARGS:
    cargo bench -p sphinx-targets --no-default-features --bench {{NAME}} -- {{ARGS}}

# What kernels take under callgrind against what is recorded; `just instructions --record` after a change that is meant.
instructions *ARGS:
    cargo test -p sphinx-runtime --no-default-features --test instructions -- {{ARGS}}

# The kernels, recorded activations and hostile files on three kinds of emulated aarch64 processor (Debian on x86-64).
arm:
    .ci/arm

# Static binaries for x86-64 and aarch64, and their demos.
release:
    .ci/release

# Type-checks for Apple Silicon, with Metal too, where there is no such machine.
apple:
    .ci/apple

# Compiles and links the CUDA build where there is no GPU.
cuda-check:
    .ci/cuda

# One fuzz target for some minutes: `just fuzz gguf_read 180`.
fuzz TARGET SECONDS="180":
    cd {{ if TARGET == "gguf_read" { "quant" } else { "convert" } }} && RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# The small binary without candle, and the full one.
sizes:
    cargo build --profile dist --no-default-features && ls -l target/dist/sphinx
    cargo build --profile dist && ls -l target/dist/sphinx
