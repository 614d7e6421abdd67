//! Diagrams, as SVG.

use anyhow::Result;
use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use crate::host::policy;

/// A line of a plot: its name, and what it has at some places of the axis.
pub struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<Point>,
}

pub struct Point {
    pub place: usize,
    pub value: f64,
    /// From where to where it spreads.
    pub range: Option<(f64, f64)>,
}

/// The size of a diagram, and of what stands above all of them.
pub const PANEL: (u32, u32) = (380, 260);

const HEAD: u32 = 64;

pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

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

/// A page of diagrams: title, legend, and columns and rows of diagrams of one size.
pub fn page(
    title: &str,
    names: &[&str],
    panel: (u32, u32),
    (columns, rows): (usize, usize),
    draw: impl Fn(usize, &Area<'_>) -> Result<()>,
) -> Result<String> {
    let mut svg = String::new();
    let size = (panel.0 * columns as u32, HEAD + panel.1 * rows as u32);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(HEAD);
        head.draw(&Text::new(title, (16, 12), ("sans-serif", 18)))?;
        let mut left = 22;
        for name in names {
            head.draw(&Circle::new(
                (left, 47),
                radius(name),
                colour(name).filled(),
            ))?;
            head.draw(&Text::new(*name, (left + 12, 40), ("sans-serif", 14)))?;
            left += 40 + 7 * name.len() as i32;
        }
        for (index, area) in body.split_evenly((rows, columns)).iter().enumerate() {
            draw(index, area)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// What stands below a diagram, and at its places.
pub struct Axis {
    pub name: &'static str,
    pub places: Vec<String>,
}

impl Axis {
    pub fn of_cpus(cpus: &[usize]) -> Self {
        Axis {
            name: "CPUs",
            places: cpus.iter().map(usize::to_string).collect(),
        }
    }
}

/// One diagram over places that are all at the same distance.
pub fn diagram(
    area: &Area<'_>,
    title: &str,
    unit: &str,
    axis: &Axis,
    lines: &[Line<'_>],
) -> Result<()> {
    let places = &axis.places;
    let tops = lines.iter().flat_map(|line| &line.points);
    let tops = tops.map(|point| point.range.map_or(point.value, |(_, to)| to));
    let highest = tops.fold(0.0, f64::max);
    // A diagram of nothing but zeros needs an axis as well.
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 14))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(58)
        .build_cartesian_2d((0..places.len() - 1).into_segmented(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(220, 220, 220))
        .x_labels(places.len() + 1)
        .y_labels(6)
        .x_label_formatter(&|place| match place {
            SegmentValue::CenterOf(place) => places.get(*place).cloned().unwrap_or_default(),
            _ => String::new(),
        })
        .x_desc(axis.name)
        .y_desc(unit)
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 12))
        .draw()?;
    for line in lines {
        let colour = colour(line.name);
        let at = |point: &Point, value: f64| (SegmentValue::CenterOf(point.place), value);
        let path: Vec<_> = line.points.iter().map(|p| at(p, p.value)).collect();
        chart.draw_series([PathElement::new(path, colour.stroke_width(2))])?;
        for point in &line.points {
            if let Some((from, to)) = point.range {
                let bar = vec![at(point, from), at(point, to)];
                chart.draw_series([PathElement::new(bar, colour.stroke_width(1))])?;
            }
            let dot = Circle::new(at(point, point.value), radius(line.name), colour.filled());
            chart.draw_series([dot])?;
        }
    }
    if lines.iter().all(|line| line.points.is_empty()) {
        area.draw(&Text::new("no value", (90, 60), ("sans-serif", 12)))?;
    }
    Ok(())
}
