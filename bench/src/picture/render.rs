//! Scenes as SVG and as PNG, drawn by plotters.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, RGBAColor, RGBColor, ShapeStyle, TextStyle,
    register_font,
};

use super::palette::{Colour, SURFACE};
use super::scene::{Anchor, Scene, Shape, Style};

/// Pixels of a PNG for each of a scene, and dots for each of these on the way, for smooth edges.
const DENSITY: u32 = 2;
const SMOOTH: u32 = 2;

/// Open fonts that Debian has, the first that is there: regular and bold.
const FONTS: [[&str; 2]; 4] = [
    [
        "/usr/share/fonts/truetype/open-sans/OpenSans-Regular.ttf",
        "/usr/share/fonts/truetype/open-sans/OpenSans-Bold.ttf",
    ],
    [
        "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
        "/usr/share/fonts/truetype/noto/NotoSans-Bold.ttf",
    ],
    [
        "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
        "/usr/share/fonts/truetype/liberation/LiberationSans-Bold.ttf",
    ],
    [
        "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
        "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf",
    ],
];

/// A scene as one SVG document. Whoever shows it has the font.
///
/// # Errors
/// If plotters can't draw it.
pub fn svg(scene: &Scene) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size(scene, 1)).into_drawing_area();
        draw(scene, &area, 1.0)?;
    }
    Ok(text)
}

/// A scene as one PNG file.
///
/// # Errors
/// If there is no font, or plotters can't draw it.
pub fn png(scene: &Scene) -> Result<Vec<u8>> {
    fonts()?;
    let (width, height) = size(scene, DENSITY * SMOOTH);
    let mut dots = vec![0; width as usize * height as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut dots, (width, height)).into_drawing_area();
        draw(scene, &area, f64::from(DENSITY * SMOOTH))?;
    }
    let pixels = averaged(&dots, width as usize, SMOOTH as usize);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width / SMOOTH, height / SMOOTH);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

#[allow(clippy::cast_sign_loss, reason = "scenes have a size")]
fn size(scene: &Scene, scale: u32) -> (u32, u32) {
    let pixels = |length: f64| (length.ceil() as u32).max(1) * scale;
    (pixels(scene.width), pixels(scene.height))
}

/// Each pixel is the average of `by` times `by` dots.
fn averaged(dots: &[u8], width: usize, by: usize) -> Vec<u8> {
    let height = dots.len() / 3 / width;
    let mut pixels = Vec::with_capacity(dots.len() / by / by);
    for y in (0..height).step_by(by) {
        for x in (0..width).step_by(by) {
            for channel in 0..3 {
                let mut sum = 0;
                for row in y..y + by {
                    for column in x..x + by {
                        sum += usize::from(dots[(row * width + column) * 3 + channel]);
                    }
                }
                pixels.push((sum / (by * by)) as u8);
            }
        }
    }
    pixels
}

/// Makes the fonts known to plotters, once.
fn fonts() -> Result<()> {
    static KNOWN: OnceLock<Result<(), String>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| find_fonts().map_err(|error| format!("{error:#}")));
    known.clone().map_err(|error| anyhow!(error))
}

fn find_fonts() -> Result<()> {
    let Some([regular, bold]) = FONTS.into_iter().find(|[regular, bold]| {
        [regular, bold]
            .iter()
            .all(|path| std::path::Path::new(path).is_file())
    }) else {
        bail!("a PNG takes a font: install fonts-dejavu-core, or use --format svg");
    };
    for (path, style) in [(regular, FontStyle::Normal), (bold, FontStyle::Bold)] {
        let bytes = std::fs::read(path).with_context(|| format!("reading {path}"))?;
        // Plotters keeps fonts as long as the program runs.
        register_font(FontFamily::SansSerif.as_str(), style, bytes.leak())
            .map_err(|_| anyhow!("{path} is no font"))?;
    }
    Ok(())
}

fn rgb([r, g, b]: Colour) -> RGBColor {
    RGBColor(r, g, b)
}

fn draw<B: DrawingBackend>(scene: &Scene, area: &DrawingArea<B, Shift>, scale: f64) -> Result<()> {
    let failed = |error| anyhow!("a picture can't be drawn: {error}");
    area.fill(&rgb(SURFACE)).map_err(failed)?;
    for shape in &scene.shapes {
        draw_shape(shape, area, scale).map_err(failed)?;
    }
    area.present().map_err(failed)
}

type Drawn<B> =
    Result<(), plotters::drawing::DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

#[allow(clippy::cast_sign_loss, reason = "widths and radiuses")]
fn draw_shape<B: DrawingBackend>(
    shape: &Shape,
    area: &DrawingArea<B, Shift>,
    scale: f64,
) -> Drawn<B> {
    let pixel = |value: f64| (value * scale).round() as i32;
    match shape {
        Shape::Rect {
            at: [x, y, width, height],
            colour,
            opacity,
        } => {
            // A bar of next to nothing is still seen.
            let right = pixel(x + width).max(pixel(*x) + 1);
            let corners = [(pixel(*x), pixel(*y)), (right, pixel(y + height))];
            area.draw(&Rectangle::new(corners, filled(*colour, *opacity)))
        }
        Shape::Path {
            points,
            colour,
            width,
        } => {
            let points: Vec<_> = points.iter().map(|(x, y)| (pixel(*x), pixel(*y))).collect();
            let style = ShapeStyle {
                color: rgb(*colour).to_rgba(),
                filled: false,
                stroke_width: pixel(*width).max(1) as u32,
            };
            area.draw(&PathElement::new(points, style))
        }
        Shape::Dot {
            at: (x, y),
            radius,
            colour,
            opacity,
        } => {
            let style = filled(*colour, *opacity);
            area.draw(&Circle::new((pixel(*x), pixel(*y)), pixel(*radius), style))
        }
        Shape::Text {
            at: (x, y),
            text,
            style,
        } => {
            // Plotters' pixels have a line's middle a little above the one that browsers have.
            let lower = if scale > 1.0 { style.size * 0.12 } else { 0.0 };
            let at = (pixel(*x), pixel(y + lower));
            area.draw(&Text::new(text.as_str(), at, text_style(style, scale)))
        }
    }
}

fn filled(colour: Colour, opacity: f64) -> ShapeStyle {
    let [r, g, b] = colour;
    ShapeStyle {
        color: RGBAColor(r, g, b, opacity),
        filled: true,
        stroke_width: 0,
    }
}

fn text_style(style: &Style, scale: f64) -> TextStyle<'static> {
    let weight = if style.bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    let place = match style.anchor {
        Anchor::Start => HPos::Left,
        Anchor::Middle => HPos::Center,
        Anchor::End => HPos::Right,
    };
    // Plotters counts a font's height from its highest to its lowest: 1.24 em.
    let size = style.size * scale * 1.24;
    TextStyle {
        font: FontDesc::new(FontFamily::SansSerif, size, weight),
        color: rgb(style.colour).to_backend_color(),
        pos: Pos::new(place, VPos::Center),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture;
    use crate::sample;

    #[test]
    fn every_picture_is_well_formed_and_names_the_lab() {
        for record in sample::all() {
            for scene in picture::scenes(&record) {
                let text = svg(&scene).unwrap();
                let document = roxmltree::Document::parse(&text).unwrap();
                let root = document.root_element();
                assert_eq!(root.tag_name().name(), "svg");
                let width: f64 = root.attribute("width").unwrap().parse().unwrap();
                let words: Vec<&str> = document
                    .descendants()
                    .filter_map(|one| one.text())
                    .collect();
                let words = words.concat();
                assert!(words.contains("compare, don't quote"), "{}", scene.label);
                for text in document
                    .descendants()
                    .filter(|one| one.has_tag_name("text"))
                {
                    let x: f64 = text.attribute("x").unwrap().parse().unwrap();
                    assert!((0.0..=width).contains(&x), "{:?}", text.text());
                }
            }
        }
    }

    #[test]
    fn text_from_outside_can_not_leave_its_place() {
        let mut scene = Scene::new(100.0, "");
        scene.height = 20.0;
        scene.text(0.0, 0.0, "</text><script>&\"'", Style::of(10.0));
        let text = svg(&scene).unwrap();
        assert!(!text.contains("<script"), "{text}");
        roxmltree::Document::parse(&text).unwrap();
    }

    #[test]
    fn pixels_are_averages() {
        let mut dots = vec![0; 2 * 2 * 3];
        dots[0] = 200; // red of the first
        dots[3] = 100; // red of the second
        assert_eq!(averaged(&dots, 2, 2), [75, 0, 0]);
    }

    /// Needs a font; says so and ends where there is none.
    #[test]
    fn a_png_has_the_size_of_its_scene() {
        if let Err(error) = fonts() {
            eprintln!("skipped: {error}");
            return;
        }
        let mut scene = Scene::new(40.0, "");
        scene.height = 30.0;
        scene.text(2.0, 15.0, "Text", Style::of(12.0));
        let file = png(&scene).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(file))
            .read_info()
            .unwrap();
        assert_eq!((reader.info().width, reader.info().height), (80, 60));
    }
}
