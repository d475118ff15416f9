"""People in view: tracking, pulse, action units, representation, clustering."""
