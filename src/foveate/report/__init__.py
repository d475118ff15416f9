"""All that people look at: pages, tables, plots, progress and evidence."""
