//! A picture as plain data: shapes at places, in pixels from the upper left corner.

use super::palette::{Colour, INK};

/// Where text is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Height of an em.
    pub size: f64,
    /// Heavier than the rest.
    pub bold: bool,
    /// Its colour.
    pub colour: Colour,
    /// Where it is put.
    pub anchor: Anchor,
}

impl Style {
    /// Text of a size.
    pub fn of(size: f64) -> Self {
        Self {
            size,
            bold: false,
            colour: INK,
            anchor: Anchor::Start,
        }
    }

    /// The same, heavier.
    pub fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// The same in another colour.
    pub fn colour(self, colour: Colour) -> Self {
        Self { colour, ..self }
    }

    /// The same, put elsewhere.
    pub fn anchor(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

/// One shape.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A filled rectangle: left, top, width, height.
    Rect {
        /// Left, top, width and height.
        at: [f64; 4],
        /// Its colour.
        colour: Colour,
        /// How much is seen of it, up to 1.
        opacity: f64,
    },
    /// Lines from point to point.
    Path {
        /// The points.
        points: Vec<(f64, f64)>,
        /// Their colour.
        colour: Colour,
        /// Their width.
        width: f64,
    },
    /// A filled circle.
    Dot {
        /// Its middle.
        at: (f64, f64),
        /// Its radius.
        radius: f64,
        /// Its colour.
        colour: Colour,
        /// How much is seen of it, up to 1.
        opacity: f64,
    },
    /// One line of text, its height's middle at the point.
    Text {
        /// The point.
        at: (f64, f64),
        /// What it says.
        text: String,
        /// How it looks.
        style: Style,
    },
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// What is in it, from the back to the front.
    pub shapes: Vec<Shape>,
    /// What it is of, for those who can't see it.
    pub label: String,
}

impl Scene {
    /// An empty one without height.
    pub fn new(width: f64, label: impl Into<String>) -> Self {
        Self {
            width,
            height: 0.0,
            shapes: Vec::new(),
            label: label.into(),
        }
    }

    /// A filled rectangle; one without width is not drawn.
    pub fn rect(&mut self, left: f64, top: f64, width: f64, height: f64, colour: Colour) {
        self.glass(left, top, width, height, colour, 1.0);
    }

    /// The same, through which something is seen.
    pub fn glass(&mut self, x: f64, y: f64, width: f64, height: f64, colour: Colour, opacity: f64) {
        if width > 0.0 && height > 0.0 {
            let at = [x, y, width, height];
            self.shapes.push(Shape::Rect {
                at,
                colour,
                opacity,
            });
        }
    }

    /// Lines from point to point.
    pub fn path(&mut self, points: Vec<(f64, f64)>, colour: Colour, width: f64) {
        self.shapes.push(Shape::Path {
            points,
            colour,
            width,
        });
    }

    /// A filled circle.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, colour: Colour, opacity: f64) {
        self.shapes.push(Shape::Dot {
            at,
            radius,
            colour,
            opacity,
        });
    }

    /// One line of text.
    pub fn text(&mut self, x: f64, y: f64, text: impl Into<String>, style: Style) {
        let at = (x, y);
        let text = text.into();
        self.shapes.push(Shape::Text { at, text, style });
    }

    /// Puts another scene below this one.
    pub fn append(&mut self, below: Scene) {
        let offset = self.height;
        let moved = |(x, y): (f64, f64)| (x, y + offset);
        for mut shape in below.shapes {
            match &mut shape {
                Shape::Rect { at, .. } => at[1] += offset,
                Shape::Path { points, .. } => points.iter_mut().for_each(|one| *one = moved(*one)),
                Shape::Dot { at, .. } | Shape::Text { at, .. } => *at = moved(*at),
            }
            self.shapes.push(shape);
        }
        self.width = self.width.max(below.width);
        self.height += below.height;
    }
}

/// About how wide a text is: enough to keep others off.
#[allow(clippy::cast_precision_loss, reason = "short")]
pub fn about_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

/// A text that is not longer than `most` characters.
pub fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", start.trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "nothing is rounded")]

    use super::*;

    #[test]
    fn what_is_appended_is_below() {
        let mut above = Scene::new(10.0, "");
        above.height = 30.0;
        let mut below = Scene::new(20.0, "");
        below.height = 5.0;
        below.rect(1.0, 2.0, 3.0, 4.0, INK);
        below.text(1.0, 2.0, "t", Style::of(3.0));
        above.append(below);
        assert_eq!((above.width, above.height), (20.0, 35.0));
        assert!(matches!(above.shapes[0], Shape::Rect { at, .. } if at == [1.0, 32.0, 3.0, 4.0]));
        assert!(matches!(above.shapes[1], Shape::Text { at, .. } if at == (1.0, 32.0)));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("äöüäöü", 4), "äöü…");
        assert_eq!(shortened("äöü", 4), "äöü");
    }
}
