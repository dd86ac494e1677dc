//! One page with everything in it: pictures, tables, notes and the raw data. It loads nothing.

use std::fmt::Write;

use anyhow::Result;

use crate::picture::palette::{IN_THE_DARK, hex};
use crate::picture::scene::Scene;
use crate::picture::{self, render};
use crate::place::LAB_SENTENCE;
use crate::record::Record;
use crate::tables::{self, Table};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page of the records.
///
/// # Errors
/// If a picture can't be drawn.
pub fn html(records: &[Record]) -> Result<String> {
    let mut page = String::new();
    page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n",
    );
    let style = STYLE.replace("/*DARK*/", &dark());
    write!(
        page,
        "<title>casita bench</title>\n<style>\n{style}</style>\n</head>\n"
    )?;
    page.push_str("<body>\n<main>\n<h1>casita bench</h1>\n");
    page.push_str(
        "<p class=\"lead\">Virtual machines beside containers, on one machine, in turns.</p>\n",
    );
    if records.iter().any(|record| record.host.is_lab()) {
        writeln!(
            page,
            "<p class=\"notice\" role=\"note\">{}</p>",
            sentence(LAB_SENTENCE)
        )?;
    }
    if records.len() > 1 {
        page.push_str("<nav>");
        for (index, record) in records.iter().enumerate() {
            write!(
                page,
                "<a href=\"#part-{index}\">{}</a>",
                escaped(record.title())
            )?;
        }
        page.push_str("</nav>\n");
    }
    for (index, record) in records.iter().enumerate() {
        section(index, record, &mut page)?;
    }
    page.push_str("<footer>Made by <code>casita bench</code>; the raw data are in this page, in ");
    page.push_str("<code>script#data</code>.</footer>\n</main>\n");
    // In a script nothing ends it but its end tag, so no '<' may stand there.
    let data = serde_json::to_string(records)?.replace('<', "\\u003c");
    writeln!(
        page,
        "<script type=\"application/json\" id=\"data\">{data}</script>"
    )?;
    write!(page, "<script>\n{SCRIPT}</script>\n</body>\n</html>\n")?;
    Ok(page)
}

/// Pictures keep the colours that they were drawn in, which a rule each changes in the dark.
fn dark() -> String {
    let rules = IN_THE_DARK.iter().map(|(light, dark)| {
        let (light, dark) = (hex(*light), hex(*dark));
        format!("  svg [fill=\"{light}\"] {{ fill: {dark}; }} svg [stroke=\"{light}\"] {{ stroke: {dark}; }}\n")
    });
    rules.collect()
}

fn section(index: usize, record: &Record, page: &mut String) -> Result<()> {
    writeln!(
        page,
        "<section id=\"part-{index}\">\n<h2>{}</h2>",
        escaped(record.title())
    )?;
    for scene in picture::scenes(record) {
        figure(&scene, page)?;
    }
    for one in tables::of(record) {
        table(&one, page)?;
    }
    let missing = record.missing.iter();
    let missing = missing.map(|one| format!("{}: {}", one.name, one.reason));
    let notes = record.notes.iter().cloned();
    page.push_str("<ul>\n");
    for note in record.shared().into_iter().chain(missing).chain(notes) {
        writeln!(page, "<li>{}</li>", escaped(&note))?;
    }
    page.push_str("</ul>\n");
    for line in record.host.lines() {
        writeln!(page, "<p class=\"host\">{}</p>", escaped(&line))?;
    }
    page.push_str("</section>\n");
    Ok(())
}

fn figure(scene: &Scene, page: &mut String) -> Result<()> {
    let picture = render::svg(scene)?;
    // As wide as the page lets it be.
    let rest = picture
        .find("viewBox")
        .map_or(&picture[..], |at| &picture[at..]);
    let label = escaped(&scene.label);
    writeln!(
        page,
        "<figure><svg role=\"img\" aria-label=\"{label}\" {rest}</figure>"
    )?;
    Ok(())
}

fn table(table: &Table, page: &mut String) -> Result<()> {
    writeln!(
        page,
        "<h3>{}</h3>\n<div class=\"table\"><table>\n<thead><tr>",
        escaped(&table.title)
    )?;
    for name in &table.header {
        let name = if name.is_empty() { "what" } else { name };
        write!(
            page,
            "<th scope=\"col\"><button>{}</button></th>",
            escaped(name)
        )?;
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for cell in row {
            write!(page, "<td>{}</td>", escaped(cell))?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
    Ok(())
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    let words: String = first.into_iter().flatten().chain(letters).collect();
    format!("{}.", escaped(&words))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_raw_data_are_in_the_page_and_come_back() {
        let records = sample::all();
        let page = html(&records).unwrap();
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = rest.split_once("</script>").unwrap();
        let read: Vec<Record> = serde_json::from_str(data).unwrap();
        assert_eq!(read, records);
    }

    #[test]
    fn a_page_loads_nothing_and_says_where_it_was_measured() {
        let page = html(&sample::all()).unwrap();
        assert!(page.contains("Measured in the lab"));
        for part in ["src=", "@import", "url(", "<link"] {
            assert!(!page.contains(part), "{part}");
        }
        let addresses = page.matches("http://").count() + page.matches("https://").count();
        let names = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
        assert_eq!(addresses, names, "only SVG's name is an address");
    }

    #[test]
    fn text_from_outside_is_text() {
        let page = html(&sample::all()).unwrap();
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains("EPYC &lt;with&gt; &quot;marks&quot; &amp; more"));
    }
}
