//! The report in a real browser.

use std::fs;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Program;
use casita_tests::suite::Suite;

const BROWSER: &str = "chromium";

pub fn tests(suite: &mut Suite) {
    let missing = || machine::lacks(BROWSER, BROWSER);
    suite.test_if(
        missing(),
        "a_browser_shows_the_report_and_sorts_its_tables",
        shows,
    );
    suite.test_if(
        missing(),
        "a_browser_draws_the_report_by_day_and_in_the_dark",
        draws,
    );
}

/// The browser without a window, network services and traces, with a new profile.
fn browser(place: &Place, options: &[&str], page: &str) -> Result<Program> {
    let program = machine::program(BROWSER).context("no browser")?;
    let profile = format!("--user-data-dir={}", place.text("profile"));
    let page = format!("file://{}", place.text(page));
    let words = [
        &program.display().to_string(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        &profile,
    ];
    let words = words.into_iter().chain(options.iter().copied());
    let words: Vec<String> = words.chain([page.as_str()]).map(str::to_owned).collect();
    // What it keeps for its user goes to the place as well.
    let program = Program::new(words).folder(&place.path("tmp"));
    Ok(program.env("HOME", place.path("home")))
}

fn shows() -> Result<()> {
    let place = super::saved()?;
    let page = super::report(&place, &["--format", "html"])?.text();
    let pictures = page.matches("<figure>").count();
    ensure!(pictures == 4, "{pictures} pictures");
    // Clicked as a user would: the first table by its second column, which then falls and rises.
    let clicks = "<script>const by = document.querySelectorAll('th button')[1]; by.click(); \
                  const rows = [...by.closest('table').tBodies[0].rows]; \
                  document.body.dataset.order = rows.map(row => row.cells[1].textContent).join(' ');\
                  </script></body>";
    place.write("page.html", page.replace("</body>", clicks))?;
    let shown = browser(&place, &["--dump-dom"], "page.html")?;
    let shown = shown.finish()?.expect(0)?;
    let text = shown.text();
    ensure!(
        text.contains(&format!("data-ready=\"{pictures}\"")),
        "its script did not run\n{shown}"
    );
    ensure!(
        text.contains("aria-sort=\"ascending\""),
        "nothing was sorted\n{shown}"
    );
    let (_, rest) = text.split_once("data-order=\"").context("no order")?;
    let (order, _) = rest.split_once('"').context("no order")?;
    let order: Vec<f64> = order.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        order.len() > 1 && order.is_sorted(),
        "{order:?} is not in order"
    );
    Ok(())
}

fn draws() -> Result<()> {
    let place = super::saved()?;
    super::report(&place, &["--format", "html", "--output", "page.html"])?;
    let mut sizes = Vec::new();
    for (name, option) in [
        ("day.png", "--blink-settings=preferredColorScheme=1"),
        ("dark.png", "--blink-settings=preferredColorScheme=0"),
    ] {
        let shot = format!("--screenshot={}", place.text(name));
        let options = ["--window-size=1100,1400", option, &shot];
        browser(&place, &options, "page.html")?
            .finish()?
            .expect(0)?;
        let picture = fs::read(place.path(name)).context("no screenshot")?;
        // A page with nothing on it is some kilobytes.
        ensure!(picture.len() > 30_000, "{name} has {} bytes", picture.len());
        sizes.push(picture);
    }
    ensure!(sizes[0] != sizes[1], "the dark page looks like the other");
    Ok(())
}
