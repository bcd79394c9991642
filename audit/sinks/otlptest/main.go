// Command otlptest is an OpenTelemetry Collector with what the test of the OTLP
// sink needs: the Collector's own OTLP receiver, and behind the name of contrib's
// file exporter one that appends what arrived before it answers. It is a module of its own: nothing of it gets into
// Rotunda.
//
//	otlptest --config collector.yaml
package main

import (
	"context"
	"fmt"
	"os"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

func main() {
	settings := otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "otlptest", Description: "OpenTelemetry Collector for a test", Version: "0"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
			DefaultScheme:     "file",
		}},
	}
	if err := otelcol.NewCommand(settings).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func factories() (otelcol.Factories, error) {
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap[exporter.Factory](newAppend())
	return otelcol.Factories{Receivers: receivers, Exporters: exporters, Telemetry: otelconftelemetry.NewFactory()}, err
}

// appendConfig is the exporter's section of the configuration.
type appendConfig struct {
	Path string `mapstructure:"path"` // the file; each request becomes a line of OTLP/JSON
}

// appendExporter answers a request only after its line is in the file.
type appendExporter struct {
	path string
	mu   sync.Mutex
	file *os.File
}

func newAppend() exporter.Factory {
	return exporter.NewFactory(component.MustNewType("file"), func() component.Config { return &appendConfig{} },
		exporter.WithLogs(func(_ context.Context, _ exporter.Settings, c component.Config) (exporter.Logs, error) {
			return &appendExporter{path: c.(*appendConfig).Path}, nil
		}, component.StabilityLevelDevelopment))
}

func (e *appendExporter) Start(context.Context, component.Host) (err error) {
	e.file, err = os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return err
}

func (e *appendExporter) Shutdown(context.Context) error { return e.file.Close() }

func (*appendExporter) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (e *appendExporter) ConsumeLogs(_ context.Context, logs plog.Logs) error {
	line, err := (&plog.JSONMarshaler{}).MarshalLogs(logs)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err = e.file.Write(append(line, '\n'))
	return err
}
