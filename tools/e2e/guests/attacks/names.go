package attacks

import "fmt"

// Names are those of all checks.
func Names() []string {
	var names []string
	for _, a := range attacks {
		for _, network := range a.networks {
			served, others := a.columns(nil, network)
			for _, c := range append(others, served) {
				names = append(names, fmt.Sprintf("attacks/%s (%s)/%s", a.name, network.Binding, c.Name))
			}
		}
	}
	return names
}
