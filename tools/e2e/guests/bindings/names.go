package bindings

// Names are those of all checks.
func Names() []string {
	var names []string
	for _, r := range rows {
		for _, c := range (&scene{row: r}).columns() {
			names = append(names, r.name()+"/"+c.Name)
		}
		names = append(names, r.name()+"/uplink")
	}
	return names
}
