package api

import (
	"strconv"
	"strings"
)

// The media types of a token, in the order of the server's preference.
const (
	mediaJSON = "application/json"
	mediaJWT  = "application/jwt"
	mediaText = "text/plain"
)

// preferredMedia returns the media type of a token that suits the values of the
// header Accept best (RFC 9110 section 12.5.1). If none does, or none is asked
// for, it is JSON.
//
// Of types with equal weight, one that was named wins over one that a wildcard
// let in, and then the server's order decides.
func preferredMedia(accept []string) string {
	if len(accept) == 0 || len(accept) == 1 && accept[0] == "*/*" { // most clients
		return mediaJSON
	}
	preferred, best := mediaJSON, match{}
	for _, media := range [...]string{mediaJSON, mediaJWT, mediaText} {
		m := matchMedia(accept, media)
		if m.weight > best.weight || m.weight == best.weight && m.weight > 0 && m.precision > best.precision {
			preferred, best = media, m
		}
	}
	return preferred
}

// match is what Accept says of one media type: the weight that it gave, 0 to 1,
// and how precisely it named the type: 1 for */*, 2 for type/*, 3 for type/subtype.
type match struct {
	weight    float64
	precision int
}

// matchMedia returns the match of the most precise media range that covers media.
func matchMedia(accept []string, media string) match {
	var found match
	for _, line := range accept {
		for element := range strings.SplitSeq(line, ",") {
			mediaRange, parameters, _ := strings.Cut(element, ";")
			precision := precisionOf(strings.TrimSpace(mediaRange), media)
			if precision > found.precision {
				found = match{weight: weightOf(parameters), precision: precision}
			}
		}
	}
	return found
}

// precisionOf returns how precisely a media range covers media, 0 if it does not.
func precisionOf(mediaRange, media string) int {
	mainType, _, _ := strings.Cut(media, "/")
	switch {
	case strings.EqualFold(mediaRange, media):
		return 3
	case strings.EqualFold(mediaRange, mainType+"/*"):
		return 2
	case mediaRange == "*/*":
		return 1
	default:
		return 0
	}
}

// weightOf returns the weight among the parameters of a media range: 1 if there
// is none, 0 if it is malformed.
func weightOf(parameters string) float64 {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(parameter, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		weight, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !(weight >= 0 && weight <= 1) {
			return 0
		}
		return weight
	}
	return 1
}
