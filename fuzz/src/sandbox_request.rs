//! A sandbox's request of any bytes is refused in one line, or is one that can be written and read
//! again.

use casita::sandbox::SandboxRequest;

/// One input.
pub fn run(bytes: &[u8]) {
    match SandboxRequest::from_json(bytes) {
        Ok(request) => {
            let json = serde_json::to_vec(&request).expect("what is accepted can be written");
            let again = SandboxRequest::from_json(&json).expect("and read");
            assert_eq!(again, request);
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}
