package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"cloud.google.com/go/compute/metadata"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"golang.org/x/oauth2/google"
)

// lookupVariable names the lookup that a process of this test binary is for.
const lookupVariable = "SDK_LOOKUP"

// lookups look for a cloud with its SDK for Go. They return why it is not there,
// nil if it seems to be.
var lookups = map[string]func(context.Context) error{
	"AWS credentials": func(ctx context.Context) error {
		aws, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return err
		}
		_, err = aws.Credentials.Retrieve(ctx)
		return err
	},
	"AWS instance": func(ctx context.Context) error {
		_, err := imds.New(imds.Options{}).GetInstanceIdentityDocument(ctx, nil)
		return err
	},
	"Google credentials": func(ctx context.Context) error {
		_, err := google.FindDefaultCredentials(ctx, "https://www.googleapis.com/auth/cloud-platform")
		return err
	},
	"Google instance": func(ctx context.Context) error {
		if metadata.OnGCEWithContext(ctx) {
			return nil
		}
		return errors.New("not on GCE")
	},
	"Google token": func(ctx context.Context) error {
		_, err := metadata.GetWithContext(ctx, "instance/service-accounts/default/token")
		return err
	},
	"Azure credentials": azureCredentials,
	"Azure credentials of AZURE_CLIENT_ID": func(ctx context.Context) error {
		if err := os.Setenv("AZURE_CLIENT_ID", azureClientID); err != nil {
			return err
		}
		return azureCredentials(ctx)
	},
}

const azureClientID = "11111111-2222-3333-4444-555555555555"

func azureCredentials(ctx context.Context) error {
	chain, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return err
	}
	_, err = chain.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}})
	return err
}

// outcome is what a lookup prints.
type outcome struct {
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error"` // empty: it found its cloud
}

// look runs a lookup and prints its outcome.
func look(name string) {
	start := time.Now()
	var o outcome
	if err := lookups[name](context.Background()); err != nil {
		o.Error = err.Error()
	}
	o.Seconds = time.Since(start).Seconds()
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}
