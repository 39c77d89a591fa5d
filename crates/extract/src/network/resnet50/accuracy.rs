//! How exact convolutions and features are, on the CPU and, where there is one, on a GPU.
//!
//! The tests that need a GPU are ignored, unless they are asked for: `cargo test -p luthier-extract cuda -- --ignored
//! --nocapture`. They print rows of Markdown.

use std::collections::HashSet;

use tch::{Kind, Tensor};

use super::*;
use crate::Preprocess;
use crate::network::calibration;
use crate::network::gpu::Gpu;

/// What a precision may be off the exact result, ‖y − expected‖ / ‖expected‖.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 1e-5,
        Precision::Fp16 => 2e-3,
        Precision::Bf16 => 1e-2,
        Precision::Int8 => unreachable!("convolutions of integers have tests of their own"),
    }
}

fn distance(y: &Tensor, expected: &Tensor) -> f64 {
    let y = y.to_device(tch::Device::Cpu).to_kind(Kind::Double);
    ((y - expected).norm() / expected.norm()).double_value(&[])
}

/// Fills memory that the next results may get with numbers that are none: a kernel that reads its result before it writes
/// it shows.
fn poison(device: Device, n_values: usize, kind: Kind) {
    let tensors: Vec<Tensor> = (0..4)
        .map(|_| Tensor::full([n_values as i64], f64::NAN, (kind, device.torch())))
        .collect();
    drop(tensors);
}

/// Each distinct convolution of the network with what follows it, on random inputs, beside float64 on the CPU. The inputs
/// and weights are rounded before. The result is the worst distance of each kind of convolution.
fn worst_of_each_kind(device: Device, kernels: Kernels, precision: Precision) -> Vec<(&'static str, f64)> {
    let size = InputSize::default();
    let parameters = Parameters::untrained(&parameter_shapes());
    let batch = 4;
    let target = Target {
        kernels,
        device,
        precision,
        size,
        batch,
    };
    let mut worst: Vec<(&'static str, f64)> = Vec::new();
    let mut seen = HashSet::new();
    tch::manual_seed(0);
    for plan in plans(size) {
        let [n_out, n_in, side] = plan.shape;
        if !seen.insert((plan.shape, plan.stride, plan.input_side)) {
            continue;
        }
        let kind = plan.precision(precision).kind();
        let folded = Folded::new(&plan, &parameters);
        let rounded = |tensor: Tensor| tensor.to_kind(kind).to_kind(Kind::Double);
        let cpu = (Kind::Float, tch::Device::Cpu);
        let x = Tensor::randn([batch as i64, plan.input_side, plan.input_side, n_in], cpu).permute([0, 3, 1, 2]);
        let weight = rounded(Tensor::from_slice(&folded.weight)).reshape([n_out, side, side, n_in]);
        let bias = rounded(Tensor::from_slice(&folded.bias));
        let (stride, padding) = ([plan.stride; 2], [side / 2; 2]);
        let weight = weight.permute([0, 3, 1, 2]);
        let plain = rounded(x.copy()).conv2d(&weight, Some(&bias), stride, padding, [1], 1);
        let conv = Conv::new(&plan, Folded::for_target(&plan, &parameters, target), target).unwrap();
        let x = x.to_kind(kind).to_device(device.torch());
        poison(device, plain.numel(), kind);
        let (name, y, expected) = match (n_in, side) {
            (COLOURS, _) => ("7 × 7, relu", conv.forward(&x, Activation::Relu), plain.relu()),
            (_, 3) => ("3 × 3, relu", conv.forward(&x, Activation::Relu), plain.relu()),
            _ if plan.name().contains("downsample") => ("1 × 1", conv.forward(&x, Activation::None), plain),
            _ if plan.name().contains("conv3") => {
                let [n, c, h, w] = plain.size4().map(|(n, c, h, w)| [n, c, h, w]).unwrap();
                let sum = Tensor::randn([n, h, w, c], cpu).permute([0, 3, 1, 2]).to_kind(kind);
                let expected = (plain + rounded(sum.copy())).relu();
                let y = conv.forward_add_relu(&x, sum.to_device(device.torch()));
                ("1 × 1, sum, relu", y, expected)
            }
            _ => ("1 × 1, relu", conv.forward(&x, Activation::Relu), plain.relu()),
        };
        let found = distance(&y.unwrap(), &expected);
        match worst.iter_mut().find(|(known, _)| *known == name) {
            Some((_, most)) => *most = most.max(found),
            None => worst.push((name, found)),
        }
    }
    worst
}

fn check_operators(device: Device, kernels: &[Kernels], precisions: &[Precision]) {
    println!("| convolution | kernels | precision | ‖y − float64‖ / ‖float64‖ |\n|---|---|---|---|");
    for (&kernels, &precision) in kernels
        .iter()
        .flat_map(|kernels| precisions.iter().map(move |p| (kernels, p)))
    {
        if let Err(error) = device.check(precision) {
            eprintln!("SKIPPED: {error}");
            continue;
        }
        for (name, found) in worst_of_each_kind(device, kernels, precision) {
            println!("| {name} | {} | {precision} | {found:.1e} |", kernels.name());
            assert!(
                found <= tolerance(precision),
                "{name}, {}, {precision}: {found}",
                kernels.name()
            );
        }
    }
}

#[test]
fn convolutions_on_the_cpu_are_exact() {
    check_operators(
        Device::Cpu,
        &[Kernels::OneDnn, Kernels::Plain],
        &[Precision::Fp32, Precision::Bf16],
    );
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions_on_cuda_are_exact() {
    Device::Cuda(0).check(Precision::Fp32).unwrap();
    check_operators(
        Device::Cuda(0),
        &[Kernels::CuDnn, Kernels::Plain],
        &[Precision::Fp32, Precision::Bf16, Precision::Fp16],
    );
}

/// Features of the drawings that are at hand by an untrained network, in batches of so many.
fn features_on(device: Device, kernels: Kernels, precision: Precision, batch: usize) -> Result<Vec<f32>> {
    features_of(device, kernels, precision, batch).map(|(features, _)| features)
}

/// The same, with how large the batches were in the end.
fn features_of(device: Device, kernels: Kernels, precision: Precision, batch: usize) -> Result<(Vec<f32>, usize)> {
    device.check(precision)?;
    let size = InputSize::default();
    let target = Target {
        kernels,
        device,
        precision,
        size,
        batch,
    };
    let network = Network::new(&Parameters::untrained(&parameter_shapes()), target, None)?;
    let n = calibration::sample_images().len();
    let pixels = calibration::pixels(size, n);
    if device == Device::Cpu {
        let batches = pixels.chunks_exact(batch * size.bytes());
        let features = batches.map(|pixels| network.forward(pixels, &Pooling::ALL));
        return Ok((features.collect::<Result<Vec<_>>>()?.concat(), batch));
    }
    let mut features = vec![Vec::new(); n];
    let read = |place: usize, _: &mut Preprocess| {
        Ok(crate::network::batches::Prepared {
            views: pixels[place * size.bytes()..][..size.bytes()].to_vec(),
            about: (),
        })
    };

    let done = |place: usize, (), rows: Vec<Vec<f32>>| {
        features[place] = rows.concat();
        Ok(())
    };
    let gpu = Gpu::new(1, n, batch)?;
    gpu.run(n, read, network.on_gpu(&Pooling::ALL), &(), done)?;
    Ok((features.concat(), gpu.batch()))
}

/// The least cosine between rows, and the largest difference of a value in parts of the largest value.
fn nearness(found: &[f32], expected: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let rows = found.chunks_exact(WIDTH).zip(expected.chunks_exact(WIDTH));
    let cosine = rows
        .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
        .fold(1.0, f64::min);
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| f64::from((a - b).abs() / largest));
    (cosine, differences.fold(0.0, f64::max))
}

#[test]
#[ignore = "needs a GPU"]
fn features_on_cuda_are_those_of_the_cpu() {
    let gpu = Device::Cuda(0);
    let expected = features_on(Device::Cpu, Kernels::best(Device::Cpu), Precision::Fp32, 1).unwrap();
    println!("| kernels | precision | 1 − cosine to the CPU's fp32, worst | largest difference |\n|---|---|---|---|");
    for kernels in [Kernels::CuDnn, Kernels::Plain] {
        for (precision, least) in [
            (Precision::Fp32, 1.0 - 1e-6),
            (Precision::Fp16, 0.9999),
            (Precision::Bf16, 0.999),
        ] {
            let found = features_on(gpu, kernels, precision, 128).unwrap();
            let (cosine, difference) = nearness(&found, &expected);
            println!(
                "| {} | {precision} | {:.1e} | {difference:.1e} |",
                kernels.name(),
                1.0 - cosine
            );
            assert!(cosine >= least, "{}, {precision}: {cosine}", kernels.name());
            let again = features_on(gpu, kernels, precision, 128).unwrap();
            assert!(
                found == again,
                "{}, {precision}: twice, not the same bits",
                kernels.name()
            );
        }
    }
}

/// Images in batches of another size may get other bits, which is why the last batch is padded to the whole size.
#[test]
#[ignore = "needs a GPU"]
fn features_on_cuda_by_the_size_of_the_batch() {
    println!("| precision | batch | other bits | 1 − cosine |\n|---|---|---|---|");
    for precision in [Precision::Fp32, Precision::Fp16] {
        let expected = features_on(Device::Cuda(0), Kernels::CuDnn, precision, 128).unwrap();
        for batch in [1, 2, 4, 8, 16, 32, 64, 256] {
            let found = features_on(Device::Cuda(0), Kernels::CuDnn, precision, batch).unwrap();
            let n_other = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
            let (cosine, _) = nearness(&found, &expected);
            println!(
                "| {precision} | batch {batch} | {n_other} of {} other bits | {:.1e} |",
                found.len(),
                1.0 - cosine
            );
        }
    }
}

/// All memory of the GPU is taken but for half a gigabyte, where 512 images need more than two.
#[test]
#[ignore = "needs a GPU"]
fn memory_that_runs_out_on_cuda_halves_the_batch() {
    let device = Device::Cuda(0);
    let expected = features_on(device, Kernels::CuDnn, Precision::Fp32, 8).unwrap();
    let block = || Tensor::f_zeros([1 << 28], (Kind::Uint8, device.torch()));
    let mut taken: Vec<Tensor> = std::iter::from_fn(|| block().ok()).collect();
    println!("{} blocks of 256 MiB taken", taken.len());
    taken.truncate(taken.len() - 2);
    let (found, batch) = features_of(device, Kernels::CuDnn, Precision::Fp32, 512).unwrap();
    assert!(batch < 512, "memory did not run out");
    let (cosine, _) = nearness(&found, &expected);
    assert!(cosine >= 1.0 - 1e-6, "{cosine}");
}
