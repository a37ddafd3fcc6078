package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// figure is what was measured of ours and of its reference, once a round.
type figure struct {
	name, unit string
	more       bool // is better
	values     []float64
	references []float64
}

// ratio is that of the rounds.
type ratio struct{ lowest, median, highest float64 }

func (f figure) ratio() ratio {
	ratios := make([]float64, len(f.values))
	for i := range ratios {
		ratios[i] = f.values[i] / f.references[i]
	}
	return ratio{slices.Min(ratios), median(ratios), slices.Max(ratios)}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// short writes a number with three digits that count.
func short(value float64) string {
	if value <= 0 {
		return "0"
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(value)))), value)
}

// table is the figures in Markdown.
func table(figures []figure) string {
	var out strings.Builder
	out.WriteString("| figure | unit | better | value | reference | ratio (lowest, median, highest) |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, f := range figures {
		r := f.ratio()
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %.2f, **%.2f**, %.2f |\n",
			f.name, f.unit, map[bool]string{true: "more", false: "less"}[f.more], short(median(f.values)), short(median(f.references)), r.lowest, r.median, r.highest)
	}
	return out.String()
}

// plot draws the ratios on a logarithmic scale: a dot for the median, a line from the
// lowest to the highest. It is black on white, or white on black where the reader's
// system is dark.
func plot(figures []figure) string {
	const (
		row, top, names, width = 22, 34, 330, 900
		right                  = 60 // for the numbers
	)
	low, high := 0.5, 2.0
	for _, f := range figures {
		r := f.ratio()
		low, high = min(low, r.lowest), max(high, r.highest)
	}
	low, high = math.Pow(2, math.Floor(math.Log2(low))), math.Pow(2, math.Ceil(math.Log2(high)))
	x := func(ratio float64) float64 {
		return names + (width-names-right)*math.Log(ratio/low)/math.Log(high/low)
	}
	bottom := top + row*len(figures)
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">
<title>Ratios to the reference</title>
<style>
rect { fill: #fff } text { fill: #1f2328 } .grid { stroke: #d1d9e0 } .one { stroke: #1f2328 } .range { stroke-width: 3 }
.more { stroke: #1a7f37; fill: #1a7f37 } .less { stroke: #0969da; fill: #0969da }
@media (prefers-color-scheme: dark) {
rect { fill: #0d1117 } text { fill: #f0f6fc } .grid { stroke: #3d444d } .one { stroke: #f0f6fc }
.more { stroke: #3fb950; fill: #3fb950 } .less { stroke: #58a6ff; fill: #58a6ff }
}
</style>
<rect width="%d" height="%d"/>
`, width, bottom+34, width, bottom+34)
	for tick := low; tick <= high*1.01; tick *= 2 {
		class, label := "grid", fmt.Sprint(tick)
		if tick == 1 {
			class = "one"
		} else if tick < 1 {
			label = fmt.Sprint("1/", 1/tick)
		}
		fmt.Fprintf(&out, "<line class=%q x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
			class, x(tick), top-8, x(tick), bottom, x(tick), top-14, label)
	}
	for i, f := range figures {
		r, y := f.ratio(), top+row*i+row/2
		class := map[bool]string{true: "more", false: "less"}[f.more]
		fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>", names-14, y+4, html.EscapeString(strings.ReplaceAll(f.name, "`", "")))
		fmt.Fprintf(&out, "<line class=\"range %s\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>", class, x(r.lowest), y, x(r.highest), y)
		fmt.Fprintf(&out, "<circle class=%q cx=\"%.1f\" cy=\"%d\" r=\"5\"/>", class, x(r.median), y)
		fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%.2f</text>\n", width-8, y+4, r.median)
	}
	fmt.Fprintf(&out, "<circle class=\"less\" cx=\"%d\" cy=\"%d\" r=\"5\"/><text x=\"%d\" y=\"%d\">less is better</text>", names, bottom+16, names+10, bottom+20)
	fmt.Fprintf(&out, "<circle class=\"more\" cx=\"%d\" cy=\"%d\" r=\"5\"/><text x=\"%d\" y=\"%d\">more is better</text>\n</svg>\n", names+130, bottom+16, names+140, bottom+20)
	return out.String()
}
