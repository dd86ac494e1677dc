use super::*;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(media_type: &str, platform: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":7{platform}}}"#)
}

fn platform(os: &str, architecture: &str, variant: &str) -> String {
    format!(r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#)
}

fn manifest(config: &str, layer: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(config, ""),
        descriptor(layer, "")
    )
}

fn index(entries: &[String]) -> Index {
    let json = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    match parse(json.as_bytes(), None).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("an index was read as a manifest"),
    }
}

#[test]
fn both_families_of_manifests_are_read() {
    for (kind, config, layer) in [
        (
            media::OCI_MANIFEST,
            media::OCI_CONFIG,
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            media::DOCKER_MANIFEST,
            media::DOCKER_CONFIG,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        let json = manifest(config, layer);
        for told in [None, Some(kind), Some("application/json; charset=utf-8")] {
            match parse(json.as_bytes(), told).unwrap() {
                Document::Manifest(manifest) => {
                    assert_eq!(manifest.layers[0].size, 7);
                    assert_eq!(manifest.config.digest, D.parse().unwrap());
                }
                Document::Index(_) => panic!("a manifest was read as an index"),
            }
        }
    }
}

#[test]
fn what_is_no_image_is_refused_for_its_reason() {
    let refused = |json: &str, told| parse(json.as_bytes(), told).unwrap_err();
    assert!(matches!(refused("{", None), ManifestError::Json(_)));
    assert!(matches!(
        refused(r#"{"schemaVersion":1}"#, None),
        ManifestError::Schema1
    ));
    assert!(matches!(
        refused("{}", Some("text/html")),
        ManifestError::Type(_)
    ));
    let chart = manifest("application/vnd.cncf.helm.config.v1+json", "");
    assert!(matches!(refused(&chart, None), ManifestError::Artifact(_)));
    let model = manifest(media::OCI_CONFIG, "application/vnd.ollama.image.model");
    assert!(matches!(
        refused(&model, None),
        ManifestError::Layer { index: 1, .. }
    ));
    let large = " ".repeat(MAX_MANIFEST + 1);
    assert!(matches!(refused(&large, None), ManifestError::TooLarge(_)));
}

#[test]
fn the_image_for_this_machine_is_selected() {
    let arm = descriptor(media::OCI_MANIFEST, &platform("linux", "arm64", "v8"));
    let windows = descriptor(media::OCI_MANIFEST, &platform("windows", "amd64", ""));
    let later = descriptor(media::OCI_MANIFEST, &platform("linux", "amd64", "v3"));
    let plain = descriptor(media::OCI_MANIFEST, &platform("linux", "amd64", ""));
    let unnamed = descriptor(media::OCI_MANIFEST, "");
    let all = index(&[arm.clone(), windows.clone(), later.clone(), plain]);
    assert_eq!(all.select().unwrap(), &all.manifests[3]);
    let only_later = index(&[arm.clone(), later]);
    assert_eq!(only_later.select().unwrap(), &only_later.manifests[1]);
    assert!(index(std::slice::from_ref(&unnamed)).select().is_ok());
    assert!(index(&[unnamed.clone(), unnamed]).select().is_err());
    let error = index(&[arm, windows]).select().unwrap_err().to_string();
    assert!(
        error.contains("linux/amd64") && error.contains("linux/arm64/v8"),
        "{error}"
    );
}
