//! Curves as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{ChartBuilder, Circle, IntoDrawingArea, LineSeries, RGBColor, SVGBackend, WHITE};

use crate::failure::Failure;

/// Writes the curve through `points` to `file`, both axes from 0.
pub fn curve(file: &Path, title: &str, x: &str, y: &str, points: &[(f64, f64)]) -> Result<()> {
    let drawn = draw(title, x, y, points).map_err(|e| anyhow!("the curve cannot be drawn: {e}"))?;
    std::fs::write(file, drawn).map_err(|e| Failure::io(file, &e))
}

fn draw(title: &str, x: &str, y: &str, points: &[(f64, f64)]) -> Result<String, Box<dyn std::error::Error>> {
    let most = |of: fn(&(f64, f64)) -> f64| 1.1 * points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (640, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most(|p| p.0), 0.0..most(|p| p.1))?;
        chart.configure_mesh().x_desc(x).y_desc(y).draw()?;
        let blue = RGBColor(30, 90, 180);
        chart.draw_series(LineSeries::new(points.iter().copied(), blue))?;
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 4, blue)))?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn() {
        let svg = draw("a model", "GiB", "t/s", &[(8.0, 0.5), (16.0, 2.0)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("a model") && svg.contains("t/s"));
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
