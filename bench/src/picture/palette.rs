//! Colours that people with any colour vision tell apart (after Okabe and Ito), each with its part.
//! No two are the same, so that a page can give each another value in the dark.

/// Red, green, blue.
pub type Colour = [u8; 3];

/// What everything is drawn on.
pub const SURFACE: Colour = [0xff, 0xff, 0xff];
/// Text that is to be read.
pub const INK: Colour = [0x1b, 0x1f, 0x24];
/// Text beside it.
pub const MUTED: Colour = [0x5b, 0x65, 0x70];
/// Lines that help the eye.
pub const GRID: Colour = [0xe3, 0xe6, 0xea];
/// Those that casita is measured beside.
pub const NEUTRAL: Colour = [0x9a, 0xa3, 0xad];
/// Casita.
pub const BLUE: Colour = [0x00, 0x72, 0xb2];
/// Casita's second.
pub const SKY: Colour = [0x56, 0xb4, 0xe9];
/// A guest's kernel.
pub const ORANGE: Colour = [0xe6, 0x9f, 0x00];
/// Another's second.
pub const VERMILION: Colour = [0xd5, 0x5e, 0x00];
/// What runs in a guest.
pub const GREEN: Colour = [0x00, 0x9e, 0x73];
/// The end of something.
pub const PURPLE: Colour = [0xcc, 0x79, 0xa7];
/// Behind what has to be said first.
pub const NOTICE: Colour = [0xff, 0xf3, 0xd1];
/// And its text.
pub const NOTICE_INK: Colour = [0x6b, 0x45, 0x00];

/// Each colour with what it is in the dark.
pub const IN_THE_DARK: [(Colour, Colour); 13] = [
    (SURFACE, [0x15, 0x18, 0x1d]),
    (INK, [0xea, 0xec, 0xef]),
    (MUTED, [0xa6, 0xae, 0xb8]),
    (GRID, [0x31, 0x37, 0x40]),
    (NEUTRAL, [0x7d, 0x87, 0x93]),
    (BLUE, [0x45, 0xa3, 0xdd]),
    (SKY, [0x9c, 0xd5, 0xf7]),
    (ORANGE, [0xf0, 0xb4, 0x2c]),
    (VERMILION, [0xf0, 0x83, 0x35]),
    (GREEN, [0x2b, 0xc1, 0x96]),
    (PURPLE, [0xdd, 0x95, 0xbd]),
    (NOTICE, [0x39, 0x2e, 0x12]),
    (NOTICE_INK, [0xf4, 0xcc, 0x77]),
];

/// As SVG and CSS write it.
pub fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WCAG 2.2, "relative luminance".
    fn luminance(colour: Colour) -> f64 {
        let linear = colour.map(|channel| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }

    fn contrast(one: Colour, other: Colour) -> f64 {
        let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
        f64::max(one, other) / f64::min(one, other)
    }

    #[test]
    fn text_can_be_read_by_day_and_in_the_dark() {
        let dark = |colour| {
            IN_THE_DARK
                .iter()
                .find(|(light, _)| *light == colour)
                .unwrap()
                .1
        };
        for (text, ground) in [(INK, SURFACE), (MUTED, SURFACE), (NOTICE_INK, NOTICE)] {
            assert!(contrast(text, ground) >= 4.5, "{}", hex(text));
            assert!(contrast(dark(text), dark(ground)) >= 4.5, "{}", hex(text));
        }
    }

    #[test]
    fn no_two_colours_are_the_same() {
        for (index, (one, _)) in IN_THE_DARK.iter().enumerate() {
            assert!(IN_THE_DARK[..index].iter().all(|(other, _)| other != one));
        }
    }
}
