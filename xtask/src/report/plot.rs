//! Diagrams, as SVG.

use std::collections::BTreeSet;

use anyhow::Result;
use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use crate::host::policy;
use crate::results::sample::{Row, Samples, Spread, POLICIES};

/// The size of a diagram, and of what stands above all of them.
const PANEL: (u32, u32) = (380, 260);
const HEAD: u32 = 64;
const COLUMNS: usize = 4;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The line of a policy: which of the places on the axis, and what it has there.
struct Line {
    name: &'static str,
    points: Vec<(usize, Spread)>,
}

/// One colour for each policy, the same in every plot, to be told apart by everybody.
fn colour(name: &str) -> RGBColor {
    match name {
        policy::REFCOUNT => RGBColor(213, 94, 0),
        policy::SHOOTDOWN => RGBColor(0, 114, 178),
        policy::HANDOVER => RGBColor(0, 158, 115),
        _ => BLACK,
    }
}

/// Lines that lie on each other have points of different sizes, the largest below.
fn radius(name: &str) -> i32 {
    match name {
        policy::REFCOUNT => 6,
        policy::SHOOTDOWN => 5,
        _ => 3,
    }
}

/// A diagram for each thing that was measured, over the numbers of CPUs, with a line for each policy.
pub fn plot(all: &[&Samples]) -> Result<String> {
    let rows: Vec<(&Samples, Row<'_>)> = all
        .iter()
        .flat_map(|samples| samples.rows().into_iter().map(|row| (*samples, row)))
        .collect();
    let mut panels: Vec<(&str, &str, &str)> = Vec::new();
    let mut cpus = BTreeSet::new();
    for (_, (what, case, own, unit)) in &rows {
        cpus.insert(*own);
        if !panels.contains(&(what, case, unit)) {
            panels.push((what, case, unit));
        }
    }
    let cpus: Vec<u32> = cpus.into_iter().collect();
    let columns = panels.len().min(COLUMNS);
    let grid = (panels.len().div_ceil(columns), columns);
    let size = (PANEL.0 * grid.1 as u32, HEAD + PANEL.1 * grid.0 as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(HEAD);
        head.draw(&Text::new(all[0].title(), (16, 12), ("sans-serif", 18)))?;
        let mut left = 22;
        for name in POLICIES {
            let dot = Circle::new((left, 47), radius(name), colour(name).filled());
            head.draw(&dot)?;
            head.draw(&Text::new(name, (left + 12, 40), ("sans-serif", 14)))?;
            left += 40 + 7 * name.len() as i32;
        }
        for (area, panel) in body.split_evenly(grid).iter().zip(&panels) {
            let of = |(_, row): &&(&Samples, Row<'_>)| (row.0, row.1, row.3) == *panel;
            let lines = POLICIES.map(|name| {
                let point = |(samples, row): &(&Samples, Row<'_>)| {
                    let place = cpus.iter().position(|cpus| *cpus == row.2)?;
                    Some((place, samples.absolute(*row, name)?))
                };
                let points = rows.iter().filter(of).filter_map(point).collect();
                Line { name, points }
            });
            let (what, case, unit) = panel;
            diagram(area, &format!("{what} {case}"), unit, &cpus, &lines)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// One diagram over places that are all at the same distance.
fn diagram(area: &Area<'_>, title: &str, unit: &str, cpus: &[u32], lines: &[Line]) -> Result<()> {
    let points = lines.iter().flat_map(|line| &line.points);
    let highest = points.map(|(_, spread)| spread.max).fold(0.0, f64::max);
    // A diagram of nothing but zeros needs an axis as well.
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 14))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(58)
        .build_cartesian_2d((0..cpus.len() - 1).into_segmented(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(220, 220, 220))
        .x_labels(cpus.len() + 1)
        .y_labels(6)
        .x_label_formatter(&|place| match place {
            SegmentValue::CenterOf(place) => cpus.get(*place).map_or(String::new(), u32::to_string),
            _ => String::new(),
        })
        .x_desc("CPUs")
        .y_desc(unit)
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 12))
        .draw()?;
    for line in lines {
        let colour = colour(line.name);
        let at = |place: usize, value: f64| (SegmentValue::CenterOf(place), value);
        let path = line.points.iter().map(|(place, s)| at(*place, s.median));
        let path: Vec<_> = path.collect();
        chart.draw_series([PathElement::new(path, colour.stroke_width(2))])?;
        for (place, s) in &line.points {
            let bar = vec![at(*place, s.min), at(*place, s.max)];
            chart.draw_series([PathElement::new(bar, colour.stroke_width(1))])?;
            let dot = Circle::new(at(*place, s.median), radius(line.name), colour.filled());
            chart.draw_series([dot])?;
        }
    }
    Ok(())
}
