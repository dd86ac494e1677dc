//! Makes an image of layers, for timing: `import_tar STORE LAYER.tar[.gz|.zst]...`, and prints the
//! image's file and how long it took.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use casita_images::{Digest, Import, LayerInput, Limits, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = Store::open(Path::new(&arguments.next().ok_or("no store is given")?))?;
    let names: Vec<String> = arguments.collect();
    let mut layers = Vec::new();
    for name in &names {
        layers.push(LayerInput {
            name: name.clone(),
            reader: Box::new(File::open(name)?),
            diff_id: None,
            len: None,
        });
    }
    let digest = Digest::of(names.concat().as_bytes());
    let start = Instant::now();
    let import = Import {
        reference: None,
        digest,
        config: b"{}",
        layers,
    };
    let image = store.import(import, &Limits::default(), &|_| ())?;
    println!(
        "{} {} {:?}",
        image.path.display(),
        image.size,
        start.elapsed()
    );
    Ok(())
}
