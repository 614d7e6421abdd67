//! Tables, as Markdown.

use comfy_table::{presets, CellAlignment, Table};

/// A table with its columns on the right, but for those in `left`.
pub fn of<H: ToString, C: ToString>(
    header: impl IntoIterator<Item = H>,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = C>>,
    left: &[usize],
) -> String {
    let strings = |cell: H| cell.to_string();
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header.into_iter().map(strings));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| cell.to_string()));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if !left.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
